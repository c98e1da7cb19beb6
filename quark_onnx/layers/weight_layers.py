"""Find the layers with a constant weight in a prepared float model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from quark.onnx.graph.editor import constant_tensors
from quark.onnx.operators.attributes import LayerAttributes, NodeParts
from quark.onnx.operators.row_layout import RowLayout
from quark.onnx.operators.table import OPERATORS

__all__ = ["OTHER_OPERATORS", "WeightLayer", "also_data", "weight_layer", "weight_layers"]

# Operators of ONNX and onnxruntime with weights that no layer here describes.
OTHER_OPERATORS = (
    frozenset({"Attention", "DeformConv", "Einsum", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "LSTM", "RNN"})
    - OPERATORS.keys()
)


@dataclass(frozen=True, kw_only=True)
class WeightLayer:
    """A node that applies a float32 initializer linearly to another input; of a normalization, to that normalized.

    Attributes:
        node_name: unique in a prepared model.
        op_type: one of `OPERATORS`.
        weight: the weight's initializer; layers may share it.
        weight_shape: Conv: (outputs, inputs / group, *kernel). ConvTranspose: (inputs, outputs / group, *kernel).
            Gemm: (inputs, outputs), swapped if trans_b. MatMul: (..., inputs, outputs), swapped if weight_first.
            Normalizations: the scale's.
        bias: the bias's initializer, or None.
        has_dynamic_bias: the node adds a third input that is no float32 initializer.
        input: the tensor that the weight is applied to.
        output: the node's output.
        attributes: those of the node, which know how it computes.
    """

    node_name: str
    op_type: str
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    has_dynamic_bias: bool
    input: str
    output: str
    attributes: LayerAttributes

    @property
    def channel_axis(self) -> int:
        """The axis of the weight that counts output channels, not negative; of a ConvTranspose those of each group. 0
        of normalizations, whose scale has one output per element."""
        return self.attributes.channel_axis(len(self.weight_shape))

    @property
    def channels(self) -> int:
        """How many scales the weight may have; the groups of a ConvTranspose share them."""
        return self.attributes.channels(self.weight_shape)

    @property
    def layout(self) -> RowLayout:
        """How the weight becomes rows, one for each output of all groups."""
        return self.attributes.layout(self.weight_shape)

    @property
    def input_layout(self) -> RowLayout:
        """How the weight becomes rows, one for each input channel of all groups."""
        return self.attributes.input_layout(self.weight_shape)


def weight_layers(model: onnx.ModelProto) -> tuple[WeightLayer, ...]:
    """The nodes of the `OPERATORS` whose weight is a float32 initializer, in graph order.

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
    operator = OPERATORS.get(node.op_type)
    if operator is None or node.domain not in operator.domains or len(node.input) < 2:
        return None
    index = next((index for index in operator.weight_inputs if node.input[index] in constants), None)
    if index is None or 0 in constants[node.input[index]]:
        return None
    weight, data = node.input[index], node.input[1 - index]
    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    attributes = operator.read(NodeParts(given, constants[weight], index, node.input, node.output))
    if attributes is None:
        return None
    bias = node.input[operator.bias_input] if operator.bias_input in range(len(node.input)) else ""
    return WeightLayer(
        node_name=node.name,
        op_type=node.op_type,
        weight=weight,
        weight_shape=constants[weight],
        bias=bias if bias in constants else None,
        has_dynamic_bias=bool(bias) and bias not in constants,
        input=data,
        output=node.output[0],
        attributes=attributes,
    )
