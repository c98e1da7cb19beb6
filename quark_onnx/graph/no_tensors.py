"""Values that are no tensors: sequences, maps and optionals, which ONNX allows beside them."""

from __future__ import annotations

import onnx

from quark.onnx.graph.editor import all_nodes
from quark.onnx.graph.known_shapes import with_shapes

__all__ = ["is_tensor", "no_tensors", "not_compared"]

_KINDS = ("seq(", "map(", "optional(")


def is_tensor(value: onnx.ValueInfoProto) -> bool:
    """Whether an input, inner value or output is a tensor, as far as the model says."""
    return value.type.WhichOneof("value") in (None, "tensor_type")


def no_tensors(model: onnx.ModelProto) -> frozenset[str]:
    """The names of all inputs, inner values and outputs of the main graph that are no tensors."""
    graph = model.graph
    if all(map(is_tensor, graph.input)) and not any(_makes_others(node, model) for node in all_nodes(graph)):
        return frozenset()
    typed = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    typed.graph.node.extend(graph.node)
    typed.graph.input.extend(graph.input)
    typed.graph.output.extend(onnx.ValueInfoProto(name=output.name) for output in graph.output)
    known = {value.name for value in graph.input}
    typed.graph.input.extend(  # without the data, which types do not depend on
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in known
    )
    typed = with_shapes(typed)
    values = (*typed.graph.input, *typed.graph.value_info, *typed.graph.output, *graph.value_info, *graph.output)
    return frozenset(value.name for value in values if not is_tensor(value))


def not_compared(model: onnx.ModelProto) -> tuple[str, ...]:
    """A line for the report on the outputs that comparisons leave out; nothing where all are tensors."""
    names = ", ".join(repr(output.name) for output in model.graph.output if not is_tensor(output))
    return (f"outputs that are no tensors are left out of the comparison: {names}",) if names else ()


def _makes_others(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether an output of such a node is never a tensor. Others, as Identity, only hand on what these have made."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return False  # of another domain: all of onnxruntime's make tensors
    return any(all(kind.startswith(_KINDS) for kind in output.types) for output in schema.outputs)
