"""What the tensors of a node are to it: inputs, weights, bias and outputs, as onnxruntime's quantizer takes them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

from quark.onnx.graph.editor import attributes
from quark.onnx.operators.attributes import NodeParts
from quark.onnx.operators.table import OPERATORS

__all__ = ["TensorRoles", "channel_axis", "tensor_roles"]


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
    operator = OPERATORS.get(node.op_type)
    weights: tuple[str, ...] = ()
    bias = None
    if operator is not None and operator.quantizer_knows_weight:
        given = dict(enumerate(node.input))
        weights = tuple(given[i] for i in sorted(operator.weight_inputs) if given.get(i) in constants)
        bias = given.get(operator.bias_input) if operator.bias_input is not None else None
        bias = bias if bias in constants else None
    inputs = tuple(name for name in node.input if name and name not in weights and name != bias)
    return TensorRoles(inputs, weights, bias, tuple(filter(None, node.output)))


def channel_axis(node: onnx.NodeProto, shape: tuple[int, ...]) -> int | None:
    """The axis of the output channels in the weight of a linear layer; None of other nodes.

    Args:
        shape: that of the weight.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None or not operator.is_linear:
        return None
    found = operator.family.read(NodeParts(attributes(node), shape))
    return None if found is None else found.channel_axis(len(shape))
