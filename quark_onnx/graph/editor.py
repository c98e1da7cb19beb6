"""Rewrite an ONNX graph in place: constants, readers and fresh names at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = [
    "GraphEditor",
    "all_nodes",
    "attribute",
    "attributes",
    "constant_tensors",
    "constants_to_initializers",
    "reads",
    "rename_tensors",
    "subgraphs",
]

# Attributes of Constant that hold numbers, as elements of these types.
_NUMBERS = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop and Scan."""
    for item in node.attribute:
        if item.type == onnx.AttributeProto.GRAPH:
            yield item.g
        elif item.type == onnx.AttributeProto.GRAPHS:
            yield from item.graphs


def all_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of all bodies in it."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    """All names of tensors in a graph and its bodies; some come more than once."""
    yield from (value.name for value in (*graph.input, *graph.initializer, *graph.output))
    for node in graph.node:
        yield from filter(None, (*node.input, *node.output))
        for body in subgraphs(node):
            yield from _names(body)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node reads; those of outside that its subgraphs read are among them."""
    yield from filter(None, node.input)
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}  # they may have a name of outside
        own.update(name for inner in graph.node for name in inner.output)
        inside = (name for inner in graph.node for name in reads(inner))
        yield from (name for name in (*inside, *(output.name for output in graph.output)) if name not in own)


def constant_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers and what the Constant nodes hold, by name.

    What is written to an initializer or the attribute `value` is written to the graph.
    """
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        tensor = _held_by(node)
        if tensor is not None:
            found[node.output[0]] = tensor
    return found


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Constant nodes become initializers; in subgraphs they get the attribute `value` in place of value_ints, ..."""
    outputs, kept = {value.name for value in graph.output}, []
    for node in graph.node:
        tensor = _held_by(node)
        if tensor is not None and node.output[0] not in outputs:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
        else:
            kept.append(node)
        for inner in subgraphs(node):
            _hold_constants_as_tensors(inner)
    graph.ClearField("node")
    graph.node.extend(kept)


def _hold_constants_as_tensors(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        tensor = _held_by(node)
        if tensor is not None:
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", tensor))
        for inner in subgraphs(node):
            _hold_constants_as_tensors(inner)


def _held_by(node: onnx.NodeProto) -> onnx.TensorProto | None:
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    tensor: onnx.TensorProto
    for item in node.attribute:
        if item.name == "value":
            tensor = item.t
            return tensor
        if item.name in _NUMBERS:
            tensor = numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(item), _NUMBERS[item.name]))
            return tensor
    return None


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number attribute of a node, or its default."""
    for item in node.attribute:
        if item.name == name:
            return float(item.f if item.type == onnx.AttributeProto.FLOAT else item.i)
    return default


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The values of all attributes of a node, by name; strings are bytes."""
    return {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}


class GraphEditor:
    """A graph whose initializers, readers and names are indexed, and kept so by every method here."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.interface = frozenset(value.name for value in (*graph.input, *graph.output))
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._readers: dict[str, list[onnx.NodeProto | None]] = {}
        self._index()
        self.names = set(_names(graph))
        self._counts: dict[str, int] = {}  # by what a fresh name was to be like: the next number to try
        self._gone: dict[int, onnx.NodeProto] = {}
        self._around: dict[int, tuple[onnx.NodeProto, onnx.NodeProto]] = {}

    def _index(self) -> None:
        self._readers = {value.name: [None] for value in self.graph.output}
        for node in self.graph.node:
            for name in reads(node):
                self._readers.setdefault(name, []).append(node)

    def constant(self, node: onnx.NodeProto, index: int) -> NDArray[np.float32] | None:
        """Input `index` of a node, or None where it is absent, not constant or not float32."""
        tensor = self.initializers.get(node.input[index]) if index < len(node.input) else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        values: NDArray[np.float32] = numpy_helper.to_array(tensor)
        return values

    def set_constant(self, node: onnx.NodeProto, index: int, value: NDArray[np.floating], *, like: str) -> None:
        """Give input `index` of a node a float32 initializer of its own, named like `like`."""
        name = self.fresh_name(like)
        tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name)
        self.graph.initializer.append(tensor)
        self.initializers[name] = self.graph.initializer[-1]
        if index < len(node.input):
            self._readers[node.input[index]].remove(node)
            node.input[index] = name
        else:
            node.input.append(name)
        self._readers[name] = [node]

    def set_input(self, node: onnx.NodeProto, index: int, tensor: str) -> None:
        """Let a node read another tensor."""
        self._readers[node.input[index]].remove(node)
        node.input[index] = tensor
        self._readers.setdefault(tensor, []).append(node)

    def add_integers(self, values: Iterable[int], *, like: str) -> str:
        """The name of a new int64 initializer."""
        name = self.fresh_name(like)
        self.graph.initializer.append(numpy_helper.from_array(np.array(list(values), np.int64), name))
        self.initializers[name] = self.graph.initializer[-1]
        return name

    def drop_last_input(self, node: onnx.NodeProto) -> None:
        """Take the last input of a node away."""
        self._readers[node.input.pop()].remove(node)

    def readers(self, tensor: str) -> list[onnx.NodeProto | None]:
        """One entry per use of a tensor: the node, or None for a graph output."""
        return self._readers.get(tensor, [])

    def sole_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads a tensor, and is no graph output."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 else None

    def absorb(self, node: onnx.NodeProto, after: onnx.NodeProto) -> None:
        """Remove `after`, the sole reader of `node`, which makes its output from now on. `sweep` takes it away."""
        for name in filter(None, after.input):
            self._readers[name].remove(after)
        node.output[0] = after.output[0]
        self._gone[id(after)] = after

    def drop(self, node: onnx.NodeProto) -> None:
        """Remove a node whose outputs nothing reads. `sweep` takes it away."""
        for name in filter(None, node.input):
            self._readers[name].remove(node)
        self._gone[id(node)] = node

    def insert_after(self, node: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put a copy of `new` right behind `node`."""
        index = 1 + next(i for i, other in enumerate(self.graph.node) if other is node)
        self.graph.node.insert(index, new)
        for name in reads(new):
            self._readers.setdefault(name, []).append(self.graph.node[index])

    def surround(self, node: onnx.NodeProto, before: onnx.NodeProto, behind: onnx.NodeProto) -> None:
        """Put copies of two nodes around one, with the next `sweep`."""
        self._around[id(node)] = before, behind

    def sweep(self) -> None:
        """Do what `absorb`, `drop` and `surround` left to do: once for all nodes, as it takes a pass over the graph."""
        if not self._gone and not self._around:
            return
        kept = list[onnx.NodeProto]()
        for node in self.graph.node:
            if id(node) in self._around:
                before, behind = self._around[id(node)]
                kept += before, node, behind
            elif id(node) not in self._gone:
                kept.append(node)
        self.graph.ClearField("node")
        self.graph.node.extend(kept)
        self._gone.clear()
        self._around.clear()
        self._index()

    def fresh_name(self, like: str) -> str:
        """`like` itself, or with the first number that makes it the name of no tensor here."""
        name, count = like, self._counts.get(like, 0)  # names of an editor never become free
        while name in self.names:
            name, count = f"{like}_{count}", count + 1
        self.names.add(name)
        self._counts[like] = count
        return name

    def remove_unused_initializers(self) -> None:
        """Drop the initializers that no node reads and that are no output."""
        used = {name for node in self.graph.node for name in reads(node)} | self.interface
        for index in reversed(range(len(self.graph.initializer))):
            if self.graph.initializer[index].name not in used:
                del self.graph.initializer[index]
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}


def rename_tensors(graph: onnx.GraphProto, mapping: Mapping[str, str]) -> None:
    """Rename tensors, inside subgraphs too."""
    for value in (*graph.input, *graph.initializer, *graph.value_info, *graph.output):
        value.name = mapping.get(value.name, value.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [mapping.get(name, name) for name in names]
        for inner in subgraphs(node):
            rename_tensors(inner, mapping)
