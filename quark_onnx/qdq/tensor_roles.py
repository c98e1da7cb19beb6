"""What the tensors of a node are to it: inputs, weights, bias and outputs, as onnxruntime's quantizer takes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from quark.onnx.graph.editor import attribute

__all__ = ["TensorRoles", "channel_axis", "tensor_roles"]

_WITH_WEIGHT = frozenset(
    {"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "InstanceNormalization", "LayerNormalization"}
)


@dataclass(frozen=True)
class TensorRoles:
    """The tensors of a node.

    Attributes:
        inputs: what it computes on; constants that are no weight, as that of an Add, are among them.
        weights: the constant weight of a linear layer, or the scale of a normalization; of a MatMul any constant.
        bias: the constant bias of such a layer, or None.
        outputs: what it makes.
    """

    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    bias: str | None
    outputs: tuple[str, ...]


def tensor_roles(node: onnx.NodeProto, constants: Collection[str]) -> TensorRoles:
    """The roles of a node's tensors.

    Args:
        constants: the float32 initializers.
    """
    if node.op_type in _WITH_WEIGHT:
        weights = tuple(name for name in node.input[1:2] if name in constants)
        bias = next((name for name in node.input[2:3] if name in constants), None)
    else:
        weights = tuple(name for name in node.input if name in constants) if node.op_type == "MatMul" else ()
        bias = None
    inputs = tuple(name for name in node.input if name and name not in weights and name != bias)
    return TensorRoles(inputs, weights, bias, tuple(filter(None, node.output)))


def channel_axis(node: onnx.NodeProto) -> int | None:
    """The axis of the output channels in the weight of a linear layer; None of other nodes."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type)
