"""The operators that can be layers, one object each. What is said of one here is said nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from quark.onnx.operators.attributes import (
    MAX_SPATIAL,
    ConvAttributes,
    ConvTransposeAttributes,
    GemmAttributes,
    LayerAttributes,
    MatMulAttributes,
    NodeParts,
)
from quark.onnx.operators.normalization_attributes import (
    BatchNormAttributes,
    GroupNormAttributes,
    InstanceNormAttributes,
    LayerNormAttributes,
)

__all__ = ["LINEAR", "NORMALIZATIONS", "OPERATORS", "Operator"]

_OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def _always(given: Mapping[str, Any], rank: int) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator with a constant weight that can be finetuned.

    Attributes:
        op_type: its name.
        domains: those that it is known in.
        family: the class of its attributes, which knows the layout of its weight, its channels, what it does with its
            input and output, and the convolution or product that the core sees in it.
        attributes: the attributes that are understood. A node with any other is no layer.
        weight_inputs: the inputs that may be the weight, the usual one first: 1, or 0 too.
        bias_input: the input that is added, or None.
        quantized_by_default: what Quark quantizes by default to 8 bits.
        quantizer_knows_weight: onnxruntime's quantizer takes weight and bias for what they are. Otherwise they are
            quantized as activations are.
        quantizer_op_type: the operator of ONNX with the same inputs and attributes that onnxruntime's quantizer gets in
            its place; "" where the quantizer has rules of its own for this one.
        per_channel: whether onnxruntime can quantize the weight of a node per channel, by the node's attributes and the
            number of the weight's axes. Where not, the weight gets one scale whatever was asked for.
        weight: what the weight is, and its limits, for docs/supported.md.
    """

    op_type: str
    family: type[LayerAttributes]
    attributes: tuple[str, ...]
    weight: str
    domains: tuple[str, ...] = ("", "ai.onnx")
    weight_inputs: tuple[int, ...] = (1,)
    bias_input: int | None = 2
    quantized_by_default: bool = True
    quantizer_knows_weight: bool = True
    quantizer_op_type: str = ""
    per_channel: Callable[[Mapping[str, Any], int], bool] = _always

    @property
    def is_linear(self) -> bool:
        """The weight is applied to the input itself. Then the layer may be equalised, its bias corrected and, in XInt8,
        an activation be a part of it."""
        return not self.family.normalizes

    def read(self, node: NodeParts) -> LayerAttributes | None:
        """The attributes of a node of this type; None where it is no layer."""
        return self.family.read(node) if node.given.keys() <= {*self.attributes} else None


OPERATORS: dict[str, Operator] = {
    operator.op_type: operator
    for operator in (
        Operator(
            op_type="Conv",
            family=ConvAttributes,
            attributes=_OF_CONV,
            weight=f"(outputs, inputs / group, *kernel); 1 to {MAX_SPATIAL} spatial axes",
        ),
        Operator(
            op_type="ConvTranspose",
            family=ConvTransposeAttributes,
            attributes=(*_OF_CONV, "output_padding", "output_shape"),
            weight=f"(inputs, outputs / group, *kernel); 1 to {MAX_SPATIAL} spatial axes",
            # With groups onnxruntime's quantizer cannot tell the channels of the bias apart.
            per_channel=lambda given, rank: given.get("group", 1) == 1,
        ),
        Operator(
            op_type="Gemm",
            family=GemmAttributes,
            attributes=("alpha", "beta", "transA", "transB"),
            weight="the second input: (inputs, outputs), or turned around with transB",
        ),
        Operator(
            op_type="MatMul",
            family=MatMulAttributes,
            attributes=(),
            weight="either input, a matrix; the other has any leading axes",
            weight_inputs=(1, 0),
            bias_input=None,
            # Beyond two axes onnxruntime's quantizer takes the wrong one, and older kernels fail on any.
            per_channel=lambda given, rank: rank == 2,
        ),
        Operator(
            op_type="InstanceNormalization",
            family=InstanceNormAttributes,
            attributes=("epsilon",),
            weight="the scale, one per channel",
        ),
        Operator(
            op_type="LayerNormalization",
            family=LayerNormAttributes,
            attributes=("axis", "epsilon", "stash_type"),
            weight="the scale, along any axes but the first",
            # Beyond one axis onnxruntime's quantizer takes the scale's second axis and the bias's first.
            per_channel=lambda given, rank: rank <= 1,
        ),
        Operator(
            op_type="GroupNormalization",
            family=GroupNormAttributes,
            attributes=("epsilon", "num_groups", "stash_type"),
            weight="the scale, one per channel, or per group as in opset 18",
            quantized_by_default=False,
            quantizer_knows_weight=False,
        ),
        Operator(
            op_type="BatchNormalization",
            family=BatchNormAttributes,
            attributes=("epsilon", "momentum", "training_mode"),
            weight="the scale, one per channel",
            quantized_by_default=False,
        ),
    )
}

LINEAR = tuple(name for name, operator in OPERATORS.items() if operator.is_linear)
NORMALIZATIONS = tuple(name for name, operator in OPERATORS.items() if not operator.is_linear)
