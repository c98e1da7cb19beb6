"""Operators of ONNX in place of the graphs that exporters wrote for them.

Quantized as it stands, each tensor between the nodes of such a graph would lose its own share of accuracy; and only the
scale and bias of a LayerNormalization that is a node can be tuned.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import GraphEditor
from quark.onnx.graph.opset import opset_of
from quark.onnx.patterns.matcher import Match, Matcher
from quark.onnx.patterns.pattern_table import PATTERNS

__all__ = ["FIRST_OPSET", "fuse_patterns", "has_pattern_of"]

# The operators that take the place of a pattern, with the first opset that has them.
FIRST_OPSET = {"HardSigmoid": 6, "PRelu": 7, "HardSwish": 14, "LayerNormalization": 17, "Gelu": 20}

_Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class _Fused:
    """The node that takes a match's place: its inputs behind x, each with what its name ends in, and its attributes."""

    match: Match
    constants: Mapping[str, NDArray[np.float32]]
    attributes: Mapping[str, Any]


def fuse_patterns(model: onnx.ModelProto, *, but: Collection[str] = ()) -> onnx.ModelProto:
    """A float model with one node in place of each pattern that an operator of its opset computes.

    A node has the name of its pattern's last one.

    Args:
        model: with shapes; changed, and returned.
        but: operators whose graphs stay.
    """
    newer = {name for name, first in FIRST_OPSET.items() if first > opset_of(model)}
    found = _find(model, newer.union(but))
    if found:
        _replace(model.graph, found)
    return model


def has_pattern_of(model: onnx.ModelProto, operator: str) -> bool:
    """Whether graphs in a model, which has shapes, compute what a node of the operator could."""
    return bool(_find(model, FIRST_OPSET.keys() - {operator}))


def _find(model: onnx.ModelProto, but: Collection[str]) -> list[_Fused]:
    """No two share a node."""
    matcher = Matcher(Dataflow(model), [pattern for pattern in PATTERNS if pattern.stands_for not in but])
    shapes = _float32_shapes(model.graph)
    taken, found = set[str](), []
    for node in reversed(model.graph.node):
        matches = matcher.at(node.output[0]) if node.output[0] not in taken else ()
        candidates = (_fused(match, shapes) for match in matches if not match.nodes & taken)
        fused = next(filter(None, candidates), None)
        if fused is not None:
            taken |= fused.match.nodes
            found.append(fused)
    return found


def _float32_shapes(graph: onnx.GraphProto) -> dict[str, _Shape]:
    """Return the shapes of the tensors that are known to be float32 and whose number of axes is known."""
    values = ((value.name, value.type.tensor_type) for value in (*graph.input, *graph.value_info, *graph.output))
    return {
        name: tuple(dim.dim_value or None for dim in tensor.shape.dim)
        for name, tensor in values
        if tensor.elem_type == onnx.TensorProto.FLOAT and tensor.HasField("shape")
    }


def _fused(match: Match, shapes: Mapping[str, _Shape]) -> _Fused | None:
    """None where no operator computes the same."""
    shape, values = shapes.get(match.x), dict(match.values)
    if shape is None or len(shapes.get(match.output, ())) != len(shape):  # a number of more axes adds axes
        return None
    match match.pattern.stands_for:
        case "HardSwish" | "Gelu":
            return _Fused(match, {}, values)
        case "HardSigmoid" if all(isinstance(value, float) for value in values.values()):
            return _Fused(match, {}, values)
        case "PRelu":
            slope = np.atleast_1d(np.asarray(values["slope"], np.float32))
            return _Fused(match, {"slope": slope}, {}) if _leaves(shape, slope.shape) else None
        case "LayerNormalization":
            return _layer_normalization(match, shape)
    return None


def _leaves(shape: _Shape, constant: tuple[int, ...]) -> bool:
    """Whether a tensor keeps its shape when it is multiplied by a constant."""
    along = shape[len(shape) - len(constant) :]
    return len(along) == len(constant) and all(
        size == 1 or known is None or size == known for size, known in zip(constant, along, strict=True)
    )


def _layer_normalization(match: Match, shape: _Shape) -> _Fused | None:
    """None where not some values along the last axes are normalized, or scale or bias differ along others."""
    axes = sorted(int(axis) % len(shape) - len(shape) for axis in np.ravel(match.values["axes"]))
    count, epsilon = len(axes), match.values["epsilon"]
    if not 0 < count < len(shape) or axes != [*range(-count, 0)] or not isinstance(epsilon, float):
        return None  # the first axis counts samples
    scale, bias = (np.asarray(match.values[name], np.float32) for name in ("scale", "bias"))
    together, last = np.broadcast_shapes((1,) * count, scale.shape, bias.shape), shape[-count:]
    along = together[-count:]
    sizes = [known or size for known, size in zip(last, along, strict=True)]
    is_known = all(known or size > 1 for known, size in zip(last, along, strict=True))
    if (
        not is_known
        or math.prod(sizes) == 1
        or not _leaves(last, along)
        or together[:-count] != (1,) * (len(together) - count)
    ):
        return None
    scale, bias = (np.broadcast_to(array.reshape(array.shape[-count:]), sizes) for array in (scale, bias))
    has_bias = not isinstance(match.values["bias"], float) or match.values["bias"] != 0.0
    constants = {"weight": scale, "bias": bias} if has_bias else {"weight": scale}
    return _Fused(match, constants, {"axis": -count, "epsilon": epsilon})


def _replace(graph: onnx.GraphProto, fused: Iterable[_Fused]) -> None:
    editor = GraphEditor(graph)
    at_output = {one.match.output: one for one in fused}
    gone = set[str]().union(*(one.match.nodes for one in at_output.values()))
    position = {node.output[0]: (index, node) for index, node in enumerate(graph.node)}
    nodes = []
    for node in graph.node:
        one = at_output.get(node.output[0])
        if one is not None:
            inner = sorted((position[output] for output in one.match.nodes), key=lambda found: found[0])
            nearby = [name for _, part in inner for name in part.input if name in editor.initializers]
            inputs = [_initializer(editor, nearby, one, ending) for ending in one.constants]
            operator, output = one.match.pattern.stands_for, one.match.output
            nodes.append(helper.make_node(operator, [one.match.x, *inputs], [output], node.name, **one.attributes))
        elif node.output[0] not in gone:
            nodes.append(node)
    values = [value for value in graph.value_info if value.name not in gone or value.name in at_output]
    graph.ClearField("value_info")
    graph.value_info.extend(values)
    graph.ClearField("node")
    graph.node.extend(nodes)
    editor.remove_unused_initializers()


def _initializer(editor: GraphEditor, nearby: list[str], fused: _Fused, ending: str) -> str:
    """The name of an initializer with a constant of a node: one of the pattern's, taken from `nearby`, or a new one."""
    wanted = np.ascontiguousarray(fused.constants[ending])
    for name in nearby:
        tensor = editor.initializers[name]
        same_type = tensor.data_type == onnx.TensorProto.FLOAT and tuple(tensor.dims) == wanted.shape
        if same_type and np.array_equal(numpy_helper.to_array(tensor), wanted):
            nearby.remove(name)
            return name
    name = editor.fresh_name(f"{fused.match.output}_{ending}")
    editor.graph.initializer.append(numpy_helper.from_array(wanted, name))
    return name
