"""Biases that no input makes up for: of channels that are switched off, with a bias of -1e9 in front of a Relu.

In int32 such a bias would need a scale that leaves nothing of the weights, which the other channels need.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import GraphEditor
from quark.onnx.layers.weight_layers import WeightLayer, weight_layers

__all__ = ["with_biases_in_reach"]

Range = tuple[float, float]
_FAR, _NEAR = 4, 2  # reaches beyond the end of what comes behind the layer: which biases move, and where to


def with_biases_in_reach(
    model: onnx.ModelProto, ranges: Mapping[str, Range], nodes: Collection[str]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Move biases that keep an output beyond what comes behind the layer whatever the input, nearer to that.

    Behind the layer is a Relu or Clip, or a quantizer, whose range ends somewhere. The layer's reach is K * max|w| *
    the width of the input's range: no weights of the same scale can add more. A bias more than four reaches beyond the
    end becomes one of two reaches; where the end is 0 (Relu), it and the weights of that output become 0. What comes
    behind gives the same.

    Args:
        model: a prepared float model; not changed.
        ranges: of the tensors that have a quantizer of their own.
        nodes: the names of those that are quantized.

    Returns:
        The model, and a line for the report for each bias that was changed.
    """
    layers = [layer for layer in weight_layers(model) if layer.bias is not None and layer.node_name in nodes]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    editor, lines = GraphEditor(result.graph), list[str]()
    producer = {name: node for node in result.graph.node for name in node.output}
    for layer in layers:
        inputs, behind = _input_range(layer.input, ranges, producer), _range_behind(layer, ranges, editor)
        if inputs is not None and behind != (-math.inf, math.inf):
            lines.extend(_moved(layer, max(inputs[1], 0.0) - min(inputs[0], 0.0), behind, editor))
    return (result if lines else model), tuple(lines)


def _moved(layer: WeightLayer, width: float, behind: Range, editor: GraphEditor) -> Iterator[str]:
    """Changes a layer's bias and weight where that is to be done, and says so."""
    bias, weight = editor.initializers[layer.bias or ""], editor.initializers[layer.weight]
    values, rows = numpy_helper.to_array(bias), layer.layout.rows(numpy_helper.to_array(weight))
    if layer.attributes.normalizes or values.shape != (len(rows),):
        return
    if len(editor.readers(bias.name)) != 1 or len(editor.readers(weight.name)) != 1:
        return
    rows = rows.copy()
    reach = rows.shape[1] * float(np.abs(rows).max(initial=0)) * width
    moved = values.astype(np.float64)
    for sign, end in zip((-1, 1), behind, strict=True):
        beyond = sign * (values - end) > _FAR * reach
        moved[beyond] = end + sign * _NEAR * reach if end else 0
        rows[beyond & (end == 0)] = 0
    changed = moved.astype(np.float32) != values
    if not changed.any():
        return
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    changed_weight = layer.layout.values(rows).reshape(layer.weight_shape)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed_weight), weight.name))
    yield (
        f"bias {bias.name!r} of node {layer.node_name!r}: {int(changed.sum())} of {values.size} values, up to "
        f"{values[changed][np.abs(values[changed]).argmax()]:.3g}, are more than the inputs can make up for: these "
        f"outputs never change. They were clipped, to {moved[changed][0]:.3g}; what comes behind the layer is the same"
    )


def _input_range(tensor: str, ranges: Mapping[str, Range], producer: Mapping[str, onnx.NodeProto]) -> Range | None:
    """The range of the quantizer of a layer's input: a view (Transpose, MaxPool, ...) has that of its own input."""
    while tensor not in ranges:
        node = producer.get(tensor)
        if node is None or not node.input:
            return None
        if node.op_type == "Softmax":
            return 0.0, 1.0
        tensor = node.input[0]
    return ranges[tensor]


def _range_behind(layer: WeightLayer, ranges: Mapping[str, Range], editor: GraphEditor) -> Range:
    """Which of the layer's outputs what comes behind it tells apart."""
    low, high, tensor = -math.inf, math.inf, layer.output
    reader = editor.sole_reader(tensor)
    if reader is not None and reader.op_type == "Relu":
        low, tensor = 0.0, reader.output[0]
    elif reader is not None and reader.op_type == "Clip" and reader.input[0] == tensor:
        bounds = [editor.constant(reader, index) for index in (1, 2)]
        low, high = (end if bound is None else bound.item() for end, bound in zip((low, high), bounds, strict=True))
        tensor = reader.output[0]
    if tensor in ranges:  # every quantizer's range holds 0
        low, high = max(low, min(ranges[tensor][0], 0.0)), min(high, max(ranges[tensor][1], 0.0))
    return low, high
