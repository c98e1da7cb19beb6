"""Models that compute in other floats, written in float32. Their inputs and outputs keep their types."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import GraphEditor, constant_tensors, rename_tensors, subgraphs
from quark.onnx.operators.table import LINEAR

__all__ = ["NARROW", "in_float32"]

_FLOAT, _DOUBLE = onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE
NARROW = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype")  # of Cast; of random numbers and EyeLike; of windows


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in which every tensor of 16-bit floats is float32, and doubles too where a layer has weights of them.

    All values of 16-bit floats are values of float32; a double weight is rounded. The inputs and outputs of other types
    are cast. Other tensors stay, such as the doubles that a float32 model reckons with.

    Args:
        model: without functions; not changed.
    """
    others = NARROW | {_DOUBLE} if _has_double_weights(model.graph) else NARROW
    if others.isdisjoint(_types(model.graph)):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _convert(result.graph, others)
    _cast_interface(result.graph, model.graph, others)
    return result


def _has_double_weights(graph: onnx.GraphProto) -> bool:
    doubles = {name for name, tensor in constant_tensors(graph).items() if tensor.data_type == _DOUBLE}
    if any(node.op_type in LINEAR and not doubles.isdisjoint(node.input[:2]) for node in graph.node):
        return True
    return any(_has_double_weights(body) for node in graph.node for body in subgraphs(node))


def _types(graph: onnx.GraphProto) -> Iterator[int]:
    """The element types that a graph names anywhere."""
    yield from (value.type.tensor_type.elem_type for value in (*graph.input, *graph.output))
    yield from (tensor.data_type for tensor in graph.initializer)
    for node in graph.node:
        for item in node.attribute:
            if item.name in _TYPE_ATTRIBUTES:
                yield item.i
            elif item.type == onnx.AttributeProto.TENSOR:
                yield item.t.data_type
        for body in subgraphs(node):
            yield from _types(body)


def _convert(graph: onnx.GraphProto, others: Collection[int]) -> None:
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in others:
            value.type.tensor_type.elem_type = _FLOAT
    for tensor in graph.initializer:
        _convert_tensor(tensor, others)
    for node in graph.node:
        for item in node.attribute:
            if item.name in _TYPE_ATTRIBUTES and item.i in others:
                item.i = _FLOAT
            elif item.type == onnx.AttributeProto.TENSOR:
                _convert_tensor(item.t, others)
        for body in subgraphs(node):
            _convert(body, others)


def _convert_tensor(tensor: onnx.TensorProto, others: Collection[int]) -> None:
    if tensor.data_type in others:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _cast_interface(graph: onnx.GraphProto, given: onnx.GraphProto, others: Collection[int]) -> None:
    """Inputs and outputs get the types back that they had in `given`, and a Cast each."""
    constants = {tensor.name for tensor in graph.initializer}
    editor = GraphEditor(graph)
    inputs, outputs = (
        {
            value.name: value.type.tensor_type.elem_type
            for value in values
            if value.type.tensor_type.elem_type in others and value.name not in constants
        }
        for values in (given.input, given.output)
    )
    inner = {name: editor.fresh_name(f"{name}_float32") for name in (*inputs, *outputs)}
    rename_tensors(graph, inner)
    for value, old in zip((*graph.input, *graph.output), (*given.input, *given.output), strict=True):
        if old.name in inner:
            value.CopyFrom(old)
    for name in inputs:
        graph.node.insert(0, onnx.helper.make_node("Cast", [name], [inner[name]], to=_FLOAT))
    for name, kind in outputs.items():
        if name not in inputs:
            graph.node.append(onnx.helper.make_node("Cast", [inner[name]], [name], to=kind))
