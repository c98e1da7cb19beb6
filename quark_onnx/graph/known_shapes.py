"""The shapes that a model's nodes really make."""

from __future__ import annotations

import onnx
import onnx.shape_inference

from quark.onnx.graph.editor import all_nodes, subgraphs
from quark.onnx.inference.large_models import without_weights

__all__ = ["known_lengths", "with_inferred_shapes", "with_shapes"]


def with_inferred_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with the shapes of inner tensors and outputs as they follow from the inputs.

    What the model says of them itself may be of another input size. Of a tensor for which nothing can be inferred it is
    believed as to the number of axes, not as to their lengths; what it says of tensors that no node makes goes. Weights
    are neither copied nor read.

    Args:
        model: changed, and returned.
    """
    stated = [*model.graph.value_info, *model.graph.output]
    cleared = without_weights(model)
    for graph in (cleared.graph, *(body for node in all_nodes(cleared.graph) for body in subgraphs(node))):
        graph.ClearField("value_info")
    for output in cleared.graph.output:
        if output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    result = with_shapes(cleared)
    found = {value.name: value for value in (*result.graph.value_info, *result.graph.output)}
    has_shape = {name for name, value in found.items() if value.type.tensor_type.HasField("shape")}
    made = {name for node in model.graph.node for name in node.output}
    unknown = [value for value in stated if value.name in made - has_shape and value.type.tensor_type.HasField("shape")]
    for value in unknown:
        believed = found.get(value.name) or result.graph.value_info.add()
        believed.CopyFrom(value)
        for dim in believed.type.tensor_type.shape.dim:
            dim.Clear()
    if unknown:
        result = with_shapes(result)
    for field in ("value_info", "output"):
        values = list(getattr(result.graph, field))
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    for node, inferred in zip(model.graph.node, result.graph.node, strict=True):
        if any(True for _ in subgraphs(node)):
            node.CopyFrom(inferred)
    return model


def with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with what ONNX's inference adds to the shapes that the model states."""
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def known_lengths(graph: onnx.GraphProto) -> dict[str, list[int | None]]:
    """The lengths of the tensors whose number of axes is known, initializers too; None where one is open."""
    found: dict[str, list[int | None]] = {
        value.name: [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }
    found.update((tensor.name, list(tensor.dims)) for tensor in graph.initializer)
    return found
