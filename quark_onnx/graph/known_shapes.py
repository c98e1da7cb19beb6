"""The shapes that a model's nodes really make, and whether ONNX's inference found all of them."""

from __future__ import annotations

import math

import onnx
import onnx.shape_inference
from onnx import numpy_helper

from quark.onnx.graph.editor import all_nodes, subgraphs

__all__ = ["shapes_are_known", "with_inferred_shapes", "with_shapes"]


def with_inferred_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes of inner tensors and outputs as they follow from the inputs.

    What the model says of them itself may be of another input size. Of a tensor for which nothing can be inferred it is
    believed as to the number of axes, not as to their lengths.
    """
    stated, given = list(model.graph.value_info), model
    model = onnx.ModelProto()
    model.CopyFrom(given)
    for graph in (model.graph, *(body for node in all_nodes(model.graph) for body in subgraphs(node))):
        graph.ClearField("value_info")
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    model = with_shapes(model)
    found = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    unknown = [value for value in stated if value.name not in found and value.type.tensor_type.HasField("shape")]
    if unknown:
        model.graph.value_info.extend(unknown)
        for value in model.graph.value_info[-len(unknown) :]:
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()
        model = with_shapes(model)
    _name_batches(model.graph)
    return model


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with what ONNX's inference adds to the shapes that the model states."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _name_batches(graph: onnx.GraphProto) -> None:
    """Where Reshape to (-1, numbers) leaves the first axis as it is, that keeps its name.

    ONNX's inference calls such axes unk__0 and so on, there and behind.
    """
    values = (*graph.input, *graph.value_info, *graph.output)
    dims = {value.name: list(value.type.tensor_type.shape.dim) for value in values}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = dict[str, str]()
    for node in graph.node:
        if node.op_type != "Reshape" or len(node.input) < 2 or node.input[1] not in constants:
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
    """Whether every tensor has a shape, of numbers and of the inputs' names: symbolic inference would find no more."""
    graph = model.graph
    names = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim} - {""}

    def is_known(value: onnx.ValueInfoProto) -> bool:
        tensor = value.type.tensor_type
        dims = tensor.shape.dim
        return tensor.HasField("shape") and all(dim.HasField("dim_value") or dim.dim_param in names for dim in dims)

    known = {value.name for value in (*graph.input, *graph.value_info, *graph.output) if is_known(value)}
    has_graphs = any(True for node in graph.node for _ in subgraphs(node))
    return not has_graphs and known.issuperset(name for node in graph.node for name in node.output if name)
