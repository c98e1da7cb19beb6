"""Outputs that are joined of several tensors: boxes and scores in one array, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.graph.dataflow import Dataflow, Segment

__all__ = ["JoinedOutput", "joined_outputs"]

_MOVES = {
    "Concat", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_FIRST_MARK = -1.2345e30  # what no constant in a graph is


@dataclass(frozen=True, eq=False)
class JoinedOutput:
    """An output of a float model whose elements come from several tensors, unchanged.

    Attributes:
        output: its name.
        sources: the tensors, in graph order.
        joint: the Concat nearest to the output, for messages.
        moves: a model from the sources to the output.
    """

    output: str
    sources: tuple[str, ...]
    joint: str
    moves: onnx.ModelProto

    def marks(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        """What to feed `moves` for sources of these shapes, to see where their elements go."""
        return {name: np.full(shapes[name], (i + 1) * _FIRST_MARK, np.float32) for i, name in enumerate(self.sources)}

    def parts(self, moved: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
        """Which elements of the output come from each source, by what `moves` makes of the marks."""
        return {name: moved == np.float32((i + 1) * _FIRST_MARK) for i, name in enumerate(self.sources)}


def joined_outputs(model: onnx.ModelProto) -> dict[int, JoinedOutput]:
    """The joined outputs, by their position among the model's outputs."""
    graph = Dataflow(model)
    found = {}
    for index, output in enumerate(model.graph.output):
        if output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            joined = _joined(graph, output.name)
            if joined is not None:
                found[index] = joined
    return found


def _joined(graph: Dataflow, output: str) -> JoinedOutput | None:
    moves, sources, stack, joint = set[int](), set[str](), [output], ""
    while stack:
        tensor = stack.pop(0)
        node = graph.producer.get(tensor)
        if graph.is_constant(tensor) or tensor in sources or (node is not None and id(node) in moves):
            continue
        if node is None or node.op_type not in _MOVES or not _moves_alone(node, graph):
            sources.add(tensor)
            continue
        moves.add(id(node))
        if node.op_type == "Concat":
            joint = joint or node.name
            stack.extend(node.input)
        else:
            stack.append(node.input[0])
    if not joint or len(sources) < 2:
        return None
    made = [name for node in graph.model.graph.node for name in node.output if name in sources]
    inputs = [name for name in graph.inputs if name in sources]
    ordered = (*inputs, *made)
    nodes = tuple(node for node in graph.model.graph.node if id(node) in moves)
    segment = Segment(nodes, ordered, (output,))
    moving = graph.segment_model(segment, dict.fromkeys(ordered, onnx.TensorProto.FLOAT))
    return JoinedOutput(output, ordered, joint, moving)


def _moves_alone(node: onnx.NodeProto, graph: Dataflow) -> bool:
    """Whether all that says how a node moves its data is constant."""
    return node.op_type == "Concat" or all(not name or graph.is_constant(name) for name in node.input[1:])
