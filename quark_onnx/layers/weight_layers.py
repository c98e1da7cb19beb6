"""Find the layers with a constant weight in a prepared float model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from quark.onnx.graph.editor import constant_tensors
from quark.onnx.layers.normalization import NORM_ATTRIBUTES, NORMALIZATIONS, NormAttributes, norm_attributes
from quark.onnx.layers.row_layout import RowLayout

__all__ = [
    "ATTRIBUTES", "MAX_SPATIAL", "OTHER_OPERATORS", "ConvAttributes", "ConvTransposeAttributes", "GemmAttributes",
    "WeightLayer", "also_data", "weight_layer", "weight_layers",
]  # fmt: skip

MAX_SPATIAL = 3  # axes of a Conv, as in the core

_REACH = 2**31  # of strides, dilations and pads in the core

_OF_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")

# The operators that may be layers, with the attributes that are understood: a node with any other is no layer.
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "Conv": _OF_CONV,
    "ConvTranspose": (*_OF_CONV, "output_padding", "output_shape"),
    "Gemm": ("alpha", "beta", "transA", "transB"),
    "MatMul": (),
    **NORM_ATTRIBUTES,
}

# Operators of ONNX and onnxruntime with weights that no layer here describes.
OTHER_OPERATORS = frozenset(
    {"Attention", "DeformConv", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "LSTM", "RNN"}
)


@dataclass(frozen=True, kw_only=True)
class ConvAttributes:
    """The attributes of ONNX Conv, defaults filled in; one entry per spatial dimension.

    Attributes:
        kernel_shape: taken from the weight.
        strides: defaults to ones.
        dilations: defaults to ones.
        pads: the starts of all dimensions, then the ends; zeros unless auto_pad is "NOTSET".
        auto_pad: "NOTSET", "VALID", or "SAME_UPPER" and "SAME_LOWER", which depend on the input's size.
        group: the number of groups.
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    group: int


@dataclass(frozen=True, kw_only=True)
class ConvTransposeAttributes(ConvAttributes):
    """The attributes of ONNX ConvTranspose: those of Conv, and what chooses among the outputs that there could be.

    Attributes:
        output_padding: more outputs at the end; defaults to zeros.
        output_shape: the size of each spatial dimension, in place of the pads; None where it is not given.
    """

    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None


@dataclass(frozen=True, kw_only=True)
class GemmAttributes:
    """The attributes of ONNX Gemm; MatMul has the defaults.

    Attributes:
        weight_first: of MatMul: its first input is the weight, output = W x.
    """

    alpha: float = 1.0
    beta: float = 1.0
    trans_a: bool = False
    trans_b: bool = False
    weight_first: bool = False


@dataclass(frozen=True, kw_only=True)
class WeightLayer:
    """A node that applies a float32 initializer linearly to another input; of a normalization, to that normalized.

    Attributes:
        node_name: unique in a prepared model.
        op_type: "Conv" or "ConvTranspose" (one to three spatial dimensions), "Gemm", "MatMul", or one of
            `NORMALIZATIONS`.
        weight: the weight's initializer; layers may share it.
        weight_shape: Conv: (outputs, inputs / group, *kernel). ConvTranspose: (inputs, outputs / group, *kernel).
            Gemm: (inputs, outputs), swapped if trans_b. MatMul: (..., inputs, outputs), swapped if weight_first.
            Normalizations: the scale's.
        bias: the bias's initializer, or None.
        has_dynamic_bias: the node adds a third input that is no float32 initializer.
        input: the tensor that the weight is applied to.
        output: the node's output.
        channel_axis: the axis of the weight that counts output channels, not negative; of a ConvTranspose those of each
            group. 0 of normalizations, whose scale has one output per element.
        attributes: ConvAttributes of a Conv, ConvTransposeAttributes, GemmAttributes of Gemm and MatMul,
            NormAttributes of a normalization.
    """

    node_name: str
    op_type: str
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    has_dynamic_bias: bool
    input: str
    output: str
    channel_axis: int
    attributes: ConvAttributes | GemmAttributes | NormAttributes

    @property
    def channels(self) -> int:
        """How many scales the weight may have; the groups of a ConvTranspose share them."""
        if isinstance(self.attributes, NormAttributes):
            return math.prod(self.weight_shape)
        return self.weight_shape[self.channel_axis]

    @property
    def layout(self) -> RowLayout:
        """Of the weight."""
        shape, channels = self.weight_shape, self.channels
        if isinstance(self.attributes, NormAttributes):
            return RowLayout((channels, 1), (0, 1), channels)
        if isinstance(self.attributes, ConvTransposeAttributes):
            groups = self.attributes.group
            parts = (groups, shape[0] // groups, channels, math.prod(shape[2:]))
            return RowLayout(parts, (0, 2, 1, 3), groups * channels)
        if self.channel_axis == 0:
            return RowLayout((channels, math.prod(shape[1:])), (0, 1), channels)
        return RowLayout((math.prod(shape[:-1]), channels), (1, 0), channels)


def weight_layers(model: onnx.ModelProto) -> tuple[WeightLayer, ...]:
    """The nodes of the types above whose second input is a float32 initializer, in graph order. Of MatMul the first may
    be it too.

    Args:
        model: a prepared model. Nodes inside the subgraphs of If, Loop and Scan are not looked at.
    """
    tensors = constant_tensors(model.graph).items()
    constants = {name: tuple(t.dims) for name, t in tensors if t.data_type == onnx.TensorProto.FLOAT}
    layers = (weight_layer(node, constants) for node in model.graph.node)
    return tuple(layer for layer in layers if layer is not None)


def also_data(model: onnx.ModelProto) -> set[str]:
    """The weights that other nodes read too, as Gather reads a table: onnxruntime quantizes them as activations."""
    uses = Counter(layer.weight for layer in weight_layers(model))
    readers = Counter(name for node in model.graph.node for name in node.input)
    return {weight for weight, count in uses.items() if readers[weight] > count}


def weight_layer(node: onnx.NodeProto, constants: Mapping[str, tuple[int, ...]]) -> WeightLayer | None:
    """The layer that a node is, or None.

    Args:
        node: of a float or of a quantized model.
        constants: the shapes of the float32 tensors that do not depend on the model's inputs.
    """
    if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
        return None
    weight, data = node.input[1], node.input[0]
    weight_first = node.op_type == "MatMul" and weight not in constants
    if weight_first:
        weight, data = data, weight
    if weight not in constants:
        return None
    shape = constants[weight]
    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if 0 in shape or not given.keys() <= {*ATTRIBUTES.get(node.op_type, ())}:
        return None
    attributes: ConvAttributes | GemmAttributes | NormAttributes
    is_of_a_conv = 1 <= len(shape) - 2 <= MAX_SPATIAL
    if node.op_type == "Conv" and is_of_a_conv:
        attributes, channel_axis = ConvAttributes(**_conv_attributes(given, shape[2:])), 0
    elif node.op_type == "ConvTranspose" and is_of_a_conv:
        attributes, channel_axis = _conv_transpose_attributes(given, shape[2:]), 1
    elif node.op_type == "Gemm":
        attributes = GemmAttributes(
            alpha=given.get("alpha", 1.0),
            beta=given.get("beta", 1.0),
            trans_a=bool(given.get("transA", 0)),
            trans_b=bool(given.get("transB", 0)),
        )
        channel_axis = 0 if attributes.trans_b else 1
    elif node.op_type == "MatMul" and len(shape) > 1:
        attributes = GemmAttributes(weight_first=weight_first)
        channel_axis = len(shape) - (2 if weight_first else 1)
    elif node.op_type in NORMALIZATIONS:
        attributes, channel_axis = norm_attributes(node, given), 0
    else:
        return None
    if isinstance(attributes, ConvAttributes) and not _is_in_reach(attributes, shape):
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    return WeightLayer(
        node_name=node.name,
        op_type=node.op_type,
        weight=weight,
        weight_shape=shape,
        bias=bias if bias in constants else None,
        has_dynamic_bias=bool(bias) and bias not in constants,
        input=data,
        output=node.output[0],
        channel_axis=channel_axis,
        attributes=attributes,
    )


def _is_in_reach(conv: ConvAttributes, shape: tuple[int, ...]) -> bool:
    """Whether a convolution is one that can be carried out, with numbers that the core counts with."""
    axes = len(conv.kernel_shape)
    steps, edges = (*conv.strides, *conv.dilations), list(conv.pads)
    if isinstance(conv, ConvTransposeAttributes):
        edges += [*conv.output_padding, *(conv.output_shape or ())]
    return (
        len(conv.strides) == len(conv.dilations) == axes
        and len(conv.pads) == 2 * axes
        and conv.auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
        and all(0 < step < _REACH for step in steps)
        and all(-_REACH < edge < _REACH for edge in edges)
        and conv.group > 0
        and shape[0] % conv.group == 0
    )


def _conv_transpose_attributes(given: dict[str, Any], kernel_shape: tuple[int, ...]) -> ConvTransposeAttributes:
    return ConvTransposeAttributes(
        **_conv_attributes(given, kernel_shape),
        output_padding=tuple(given.get("output_padding", ())) or (0,) * len(kernel_shape),
        output_shape=tuple(given.get("output_shape", ())) or None,
    )


def _conv_attributes(given: dict[str, Any], kernel_shape: tuple[int, ...]) -> dict[str, Any]:
    ones = (1,) * len(kernel_shape)
    auto_pad = given.get("auto_pad", b"").decode(errors="replace") or "NOTSET"  # as onnxruntime takes it
    explicit_pads = tuple(given.get("pads", ())) if auto_pad == "NOTSET" else ()
    return {
        "kernel_shape": kernel_shape,
        "strides": tuple(given.get("strides", ones)),
        "dilations": tuple(given.get("dilations", ones)),
        "pads": explicit_pads or (0, 0) * len(kernel_shape),
        "auto_pad": auto_pad,
        "group": given.get("group", 1),
    }
