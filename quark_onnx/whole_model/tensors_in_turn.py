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
    """Runs a model group by group: each node once for a batch, and what no later group needs is dropped. One session
    is open at a time.

    Args:
        graph: of the model.
        groups: names of tensors; inputs may be among them.
        engine: runs the model.
    """

    def __init__(self, graph: Dataflow, groups: Sequence[Sequence[str]], engine: Engine) -> None:
        self._graph, self._groups, self._engine = graph, groups, engine
        self._nodes = list[list[onnx.NodeProto]]()
        others, available = no_tensors(graph.model), set(graph.inputs)
        for group in groups:
            self._nodes.append(graph.ancestors(group, available))
            available.update(self._made(self._nodes[-1]) - others)
        later, self._later = set[str](), list[frozenset[str]]()
        for group, nodes in zip(reversed(groups), reversed(self._nodes), strict=True):
            self._later.insert(0, frozenset(later & available))
            later.update(group, (name for node in nodes for name in graph.reads(node)))

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Iterator[Mapping[str, NDArray[np.generic]]]]:
        """By group, the tensors of each batch: all of them must be taken before the next group's.

        Raises:
            ModelError: onnxruntime cannot load the nodes of a group.
        """
        held = [dict(batch) for batch in batches]
        for index in range(len(self._groups)):
            yield self._of_group(index, held)

    def _of_group(self, index: int, held: list[Batch]) -> Iterator[Mapping[str, NDArray[np.generic]]]:
        """held: what each batch has so far; afterwards what later groups need of it."""
        nodes, opened = self._nodes[index], None
        made = self._made(nodes)
        outputs = sorted(made & (self._later[index] | set(self._groups[index])))
        read = {name for node in nodes for name in self._graph.reads(node)} - made
        inputs = sorted(name for name in read if not self._graph.is_constant(name))
        for batch, values in enumerate(held):
            feed = {name: values[name] for name in inputs}
            if opened is None and outputs:
                opened = self._opened(Segment(tuple(nodes), tuple(inputs), tuple(outputs)), feed)
            new = opened.run(outputs, feed) if opened is not None else []
            values |= dict(zip(outputs, new, strict=True))
            del new
            held[batch] = {name: value for name, value in values.items() if name in self._later[index]}
            yield {name: values[name] for name in self._groups[index]}

    def _opened(self, segment: Segment, feed: Batch) -> ort.InferenceSession:
        types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
        return session(self._graph.segment_model(segment, types), self._engine)

    @staticmethod
    def _made(nodes: Sequence[onnx.NodeProto]) -> set[str]:
        return {name for node in nodes for name in node.output if name}
