"""Nodes that nobody needs: their outputs are not read, or they hand on what they get."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.graph.editor import reads, rename_tensors
from quark.onnx.graph.known_shapes import known_lengths

__all__ = ["drop_dead_nodes", "drop_idle_nodes"]

_NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}


def drop_dead_nodes(graph: onnx.GraphProto) -> None:
    """Nodes of which no output is read, by others that are."""
    wanted, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if not node.output or not wanted.isdisjoint(filter(None, node.output)):
            kept.append(node)
            wanted.update(reads(node))
    if len(kept) < len(graph.node):
        graph.ClearField("node")
        graph.node.extend(reversed(kept))


def drop_idle_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without nodes that hand on what they get: Identity, Dropout at inference, Cast to the type that is
    there, Reshape to the same shape, Transpose to the same order, Pad by nothing, and times 1 and plus 0.

    A Reshape of a Reshape takes what that one takes. Nodes between an input, or a constant, and an output stay.

    Args:
        model: with inferred shapes; changed, and returned.
    """
    graph = model.graph
    facts = _Facts(graph)
    _join_reshapes(graph, facts)
    kept, instead = [], dict[str, str]()
    outputs = {value.name for value in graph.output}
    fixed = {*outputs, *facts.constants, *(value.name for value in graph.input)}
    renamed = dict[str, str]()
    for node in graph.node:
        if not _is_idle(node, facts):
            kept.append(node)
            continue
        source, output = node.input[_index_of_data(node, facts)], node.output[0]
        source = instead.get(source, source)
        if output not in outputs:
            instead[output] = source
        elif source not in fixed and source not in renamed:  # its producer makes the output
            renamed[source] = output
        else:
            kept.append(node)
    if len(kept) == len(graph.node):
        return model
    gone = {*instead, *renamed}
    values = [value for value in graph.value_info if value.name not in gone]
    graph.ClearField("node")
    graph.node.extend(kept)
    graph.ClearField("value_info")
    graph.value_info.extend(values)
    rename_tensors(graph, {name: renamed.get(source, source) for name, source in instead.items()} | renamed)
    return model


class _Facts:
    """Constants, types and shapes of a graph; a length that is open is None."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        values = [*graph.input, *graph.value_info, *graph.output]
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.shapes = known_lengths(graph)

    def values(self, node: onnx.NodeProto, index: int) -> NDArray[Any] | None:
        """A constant input."""
        tensor = self.constants.get(node.input[index]) if index < len(node.input) else None
        return None if tensor is None else numpy_helper.to_array(tensor)


def _index_of_data(node: onnx.NodeProto, facts: _Facts) -> int:
    return 1 if node.op_type in ("Mul", "Add") and node.input[0] in facts.constants else 0


def _is_idle(node: onnx.NodeProto, facts: _Facts) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or any(node.output[1:]):
        return False
    x, y = node.input[0], node.output[0]
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            training = facts.values(node, 2)
            return len(node.input) < 3 or not node.input[2] or (training is not None and not training.any())
        case "Cast":
            return bool(facts.types.get(x)) and facts.types[x] == next(a.i for a in node.attribute if a.name == "to")
        case "Reshape":
            before, after = facts.shapes.get(x), facts.shapes.get(y)
            return before is not None and before == after and before.count(None) < 2 and 0 not in before
        case "Transpose":
            order = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
            return order is not None and order == sorted(order)
        case "Pad":
            pads = facts.values(node, 1)
            return pads is not None and not pads.any()
        case "Mul" | "Div" | "Add" | "Sub":
            return _is_neutral(node, facts)
    return False


def _is_neutral(node: onnx.NodeProto, facts: _Facts) -> bool:
    data = _index_of_data(node, facts)
    number, x = facts.values(node, 1 - data), node.input[data]
    shape = facts.shapes.get(x)
    if number is None or shape is None or x in facts.constants or facts.types[x] != onnx.TensorProto.FLOAT:
        return False
    along = shape[len(shape) - number.ndim :] if number.ndim else []
    leaves = number.ndim <= len(shape) and all(n in (1, m) for n, m in zip(number.shape, along, strict=True))
    return leaves and bool((number == _NEUTRAL[node.op_type]).all())


def _join_reshapes(graph: onnx.GraphProto, facts: _Facts) -> None:
    source = dict[str, str]()
    for node in graph.node:
        if node.domain or node.op_type not in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
            continue
        shape = facts.values(node, 1) if node.op_type == "Reshape" else None
        if shape is not None and shape.all() and node.input[0] in source:
            node.input[0] = source[node.input[0]]
        source[node.output[0]] = source.get(node.input[0], node.input[0])
