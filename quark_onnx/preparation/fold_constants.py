"""What does not depend on the inputs of a model, computed once."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import reads, subgraphs
from quark.onnx.graph.known_shapes import known_lengths
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.sessions import Engine, session

__all__ = ["fold_constants"]

_SMALL = 1 << 20  # bytes that a constant may have; or twice those that it is made of
_KNOWN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # operators of others may do anything, such as draw numbers
_FOLDED_TYPES = frozenset(
    {
        onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.BOOL, onnx.TensorProto.STRING,
        onnx.TensorProto.INT8, onnx.TensorProto.INT16, onnx.TensorProto.INT32, onnx.TensorProto.INT64,
        onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT32, onnx.TensorProto.UINT64,
    }
)  # fmt: skip


def fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose nodes depend on its inputs, but for those that draw random numbers and those of outputs.

    Shape of a tensor of known lengths is a constant too, and the shape that a Reshape makes, where it is known but for
    one length. A constant that is much larger than what it is made of stays a node, as one whose size is not known.

    Args:
        model: with inferred shapes; changed, and returned.
    """
    graph = model.graph
    _fix_reshapes(graph)
    _fold_shapes(graph)
    nodes = _constant_nodes(graph)
    if not nodes:
        return model
    constant = {id(node) for node in nodes}
    others = [node for node in graph.node if id(node) not in constant]
    needed = {name for node in others for name in reads(node)}
    outputs = [name for node in nodes for name in node.output if name in needed]
    values = _computed(model, nodes, outputs)
    del graph.node[:]
    graph.node.extend(others)
    graph.initializer.extend(values)
    return model


def _fix_reshapes(graph: onnx.GraphProto) -> None:
    """Give Reshape a constant shape where its output is known, but for one length at most."""
    dims = known_lengths(graph)
    constants = {tensor.name for tensor in graph.initializer}
    names = {*dims, *(name for node in graph.node for name in (*node.input, *node.output))}
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain or node.input[1] in constants:
            continue
        made = dims.get(node.output[0])
        if made is None or made.count(None) > 1 or 0 in made:
            continue
        name = node.output[0] + "_shape"
        while name in names:
            name += "_"
        names.add(name)
        shape = np.array([-1 if length is None else length for length in made], np.int64)
        graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name


def _fold_shapes(graph: onnx.GraphProto) -> None:
    dims, outputs = known_lengths(graph), {value.name for value in graph.output}
    kept = []
    for node in graph.node:
        lengths = dims.get(node.input[0]) if node.op_type in ("Shape", "Size") and not node.domain else None
        if lengths is None or node.output[0] in outputs:
            kept.append(node)
            continue
        given = {item.name: item.i for item in node.attribute}
        part = lengths[given.get("start", 0) : given.get("end")]
        known = [length for length in part if length is not None]
        if len(known) < len(part):
            kept.append(node)
            continue
        value = np.array(known if node.op_type == "Shape" else math.prod(known), np.int64)
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _constant_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    sizes = {tensor.name: _size(tensor.data_type, list(tensor.dims)) for tensor in graph.initializer}
    constants, dims = set(sizes), known_lengths(graph)
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    outputs = {value.name for value in graph.output}
    found = []
    for node in graph.node:
        if (
            node.domain not in _KNOWN
            or is_random(node)
            or any(True for _ in subgraphs(node))
            or not constants.issuperset(filter(None, node.input))
        ):
            continue
        made = [name for name in node.output if name]
        if any(name in outputs or types.get(name) not in _FOLDED_TYPES for name in made):
            continue
        new = {name: _size(types[name], dims.get(name)) for name in made}
        if sum(new.values()) > max(_SMALL, 2 * sum(sizes[name] for name in set(node.input) if name)):
            continue
        sizes.update(new)
        constants.update(made)
        found.append(node)
    return found


def _size(kind: int, dims: list[int] | list[int | None] | None) -> float:
    """The size in bytes; infinite where it is not known."""
    if dims is None or None in dims:
        return math.inf
    return math.prod(length for length in dims if length is not None) * _bytes_of(kind)


def _bytes_of(kind: int) -> int:
    return 16 if kind == onnx.TensorProto.STRING else onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize


def _computed(model: onnx.ModelProto, nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.TensorProto]:
    if not outputs:
        return []
    needed = {name for node in nodes for name in node.input}
    graph = onnx.GraphProto(name="constants")
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in needed)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    constants = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    constants.opset_import.extend(model.opset_import)
    values = session(constants, Engine(1), optimise=False).run(outputs, {})
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in zip(outputs, values, strict=True)]
