"""Whether ONNX's shape inference has found all there is to find: symbolic inference takes much longer."""

from __future__ import annotations

import math

import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import subgraphs

__all__ = ["name_batches", "shapes_are_known"]


def name_batches(graph: onnx.GraphProto) -> None:
    """Where Reshape to (-1, numbers) leaves the first axis as it is, that keeps its name.

    Args:
        graph: as ONNX's shape inference left it, which calls such axes unk__0 and so on, there and behind.
    """
    values = (*graph.input, *graph.value_info)
    dims = {value.name: list(value.type.tensor_type.shape.dim) for value in values}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = dict[str, str]()
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        before, after = (dims.get(name, []) for name in (node.input[0], node.output[0]))
        first, *others = numpy_helper.to_array(constants[node.input[1]]).ravel().tolist() or [0]
        if not before or not after or not after[0].dim_param or first != -1:
            continue
        if math.prod(dim.dim_value for dim in before[1:]) == math.prod(others) > 0:
            name = before[0].dim_param
            names[after[0].dim_param] = names.get(name, name)
    for shape in dims.values():
        for dim in shape:
            if names.get(dim.dim_param):
                dim.dim_param = names[dim.dim_param]


def shapes_are_known(model: onnx.ModelProto) -> bool:
    """Whether every tensor has a shape, of numbers and of the inputs' names."""
    graph = model.graph
    names = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim} - {""}

    def is_known(value: onnx.ValueInfoProto) -> bool:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        return tensor.HasField("shape") and all(dim.HasField("dim_value") or dim.dim_param in names for dim in dims)

    known = {value.name for value in (*graph.input, *graph.value_info, *graph.output) if is_known(value)}
    has_graphs = any(True for node in graph.node for _ in subgraphs(node))
    return not has_graphs and known.issuperset(name for node in graph.node for name in node.output if name)
