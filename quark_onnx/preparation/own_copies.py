"""Constants that nodes cannot share, and get copies of: parameters, biases, and weights arranged in several ways."""

from __future__ import annotations

from typing import Any

import onnx

from quark.onnx.graph.editor import GraphEditor
from quark.onnx.layers.weight_layers import WeightLayer, weight_layer
from quark.onnx.operators.table import OPERATORS

__all__ = ["part_arrangements", "part_biases", "part_parameters"]

_BIAS_INPUTS = {name: op.bias_input for name, op in OPERATORS.items() if op.bias_input is not None}

# Float inputs that say how an operator computes. onnxruntime's quantizer puts Q/DQ on no such input, but lets every
# reader of a constant that it quantizes for another node read what is quantized.
_PARAMETERS = {"BatchNormalization": (3, 4), "Clip": (1, 2), "Pad": (2,), "Resize": (1, 2), "Upsample": (1,)}


def part_parameters(editor: GraphEditor) -> None:
    """Give each node its own parameters, such as the scales of a Resize: they stay as they are."""
    for node in editor.graph.node:
        for index in () if node.domain else _PARAMETERS.get(node.op_type, ()):
            _part(editor, node, index)


def part_biases(editor: GraphEditor) -> None:
    """Give each layer its own bias: its int32 scale differs, and so does what finetune makes of it."""
    for node in editor.graph.node:
        index = _BIAS_INPUTS.get(node.op_type)
        if index is not None:
            _part(editor, node, index)


def _part(editor: GraphEditor, node: onnx.NodeProto, index: int) -> None:
    value = editor.constant(node, index)
    if value is not None and len(editor.readers(node.input[index])) > 1:
        editor.set_constant(node, index, value, like=node.input[index])


def part_arrangements(editor: GraphEditor) -> None:
    """Let a weight be that of layers which arrange it in the same way, such as a MatMul and a Gemm without transB.

    Others, a Gemm with transB for instance, or a Conv with other groups, get a copy: their output channels lie on
    another axis, or have other inputs, and so do the scales of channels, and the rows that are tuned.
    """
    shapes = {t.name: tuple(t.dims) for t in editor.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    copies: dict[str, dict[Any, str]] = {}
    for node in editor.graph.node:
        layer = weight_layer(node, shapes)
        if layer is None:
            continue
        arrangement, index = _arrangement(layer), list(node.input).index(layer.weight)
        known = copies.setdefault(layer.weight, {})
        if not known:
            known[arrangement] = layer.weight
        elif arrangement in known:
            editor.set_input(node, index, known[arrangement])
        else:
            value = editor.constant(node, index)
            assert value is not None
            editor.set_constant(node, index, value, like=layer.weight)
            known[arrangement] = node.input[index]


def _arrangement(layer: WeightLayer) -> tuple[Any, ...]:
    return layer.layout, layer.channel_axis, layer.attributes.groups, layer.attributes.normalizes
