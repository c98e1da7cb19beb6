"""Inner tensors of a model, some after the others, where all of them together would be too large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.graph.no_tensors import no_tensors
from quark.onnx.inference.sessions import Batch, Engine, session

__all__ = ["TensorsInTurn"]


class TensorsInTurn:
    """Runs a model group by group: each node once for a batch, and what no later group needs is dropped.

    Args:
        graph: of the model.
        groups: names of tensors; inputs may be among them.
        engine: runs the model.
    """

    def __init__(self, graph: Dataflow, groups: Sequence[Sequence[str]], engine: Engine) -> None:
        self._graph, self._groups, self._engine = graph, groups, engine
        self._nodes = list[list[onnx.NodeProto]]()
        self._sessions: dict[int, ort.InferenceSession] = {}
        others, available = no_tensors(graph.model), set(graph.inputs)
        for group in groups:
            self._nodes.append(graph.ancestors(group, available))
            available.update(self._made(self._nodes[-1]) - others)
        later, self._later = set[str](), list[frozenset[str]]()
        for group, nodes in zip(reversed(groups), reversed(self._nodes), strict=True):
            self._later.insert(0, frozenset(later & available))
            later.update(group, (name for node in nodes for name in graph.reads(node)))

    def __call__(self, batch: Batch) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """The tensors of each group, for a batch.

        Raises:
            ModelError: onnxruntime cannot load the nodes of a group.
        """
        values = dict(batch)
        for index, group in enumerate(self._groups):
            values |= self._run(index, values)
            yield {name: values[name] for name in group}
            values = {name: value for name, value in values.items() if name in self._later[index]}

    def _run(self, index: int, values: Batch) -> Batch:
        """What the nodes of a group make, as far as this one or a later one wants it."""
        nodes = self._nodes[index]
        made = self._made(nodes)
        outputs = sorted(made & (self._later[index] | set(self._groups[index])))
        if not outputs:
            return {}
        read = {name for node in nodes for name in self._graph.reads(node)} - made
        feed = {name: values[name] for name in sorted(read) if not self._graph.is_constant(name)}
        if index not in self._sessions:
            types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
            segment = Segment(tuple(nodes), tuple(feed), tuple(outputs))
            self._sessions[index] = session(self._graph.segment_model(segment, types), self._engine)
        return dict(zip(outputs, self._sessions[index].run(outputs, feed), strict=True))

    @staticmethod
    def _made(nodes: Sequence[onnx.NodeProto]) -> set[str]:
        return {name for node in nodes for name in node.output if name}
