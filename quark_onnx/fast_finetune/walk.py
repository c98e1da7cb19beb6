"""Advance a graph through all calibration data, segment by segment, so that every node runs once per sample.

The walk holds the frontier: for every batch, the tensors that later nodes still need. The next segment holds the nodes
between the frontier and the tensors that are wanted next; onnxruntime runs it batch by batch, and what nobody needs any
more is dropped at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.errors import FinetuneError
from quark.onnx.fast_finetune.batch_store import BatchStore
from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.inference import Engine, session

__all__ = ["Arrays", "Step", "Walk"]

Arrays = dict[str, NDArray[np.generic]]


class Step:
    """One advance of a walk: call `run` for every batch, from any thread."""

    def __init__(self, walk: Walk, segment: Segment, targets: tuple[str, ...]) -> None:
        self._walk = walk
        self._segment = segment
        self._targets = targets
        self._session: ort.InferenceSession | None = None
        self._opening = Lock()

    def run(self, batch: int) -> Arrays:
        """The targets of one batch; the frontier of this batch moves on.

        Raises:
            FinetuneError: onnxruntime cannot run the segment.
        """
        walk, segment = self._walk, self._segment
        before = walk.frontier(batch)
        feed = {name: walk.store.get((walk.name, name, batch)) for name in segment.inputs}
        made: Arrays = {}
        if segment.nodes:
            try:
                values = self._opened(feed).run(list(segment.outputs), feed)
            except Exception as error:  # onnxruntime's exceptions have no base of their own
                wanted = ", ".join(map(repr, self._targets))
                raise FinetuneError(f"onnxruntime cannot compute {wanted} of the {walk.name} graph: {error}") from error
            made = dict(zip(segment.outputs, values, strict=True))
        targets = {
            name: made[name] if name in made else walk.store.get((walk.name, name, batch)) for name in self._targets
        }
        after = walk.live()
        for name in before - after:
            walk.store.drop((walk.name, name, batch))
        for name in after & made.keys():
            walk.store.put((walk.name, name, batch), made[name])
        walk.set_frontier(batch, after & (before | made.keys()))
        return targets

    def _opened(self, feed: Arrays) -> ort.InferenceSession:
        """The session of the segment, with the initializers as they are at the first run."""
        with self._opening:
            if self._session is None:
                types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
                model = self._walk.dataflow.segment_model(self._segment, types)
                self._session = session(model, self._walk.engine)
            return self._session


class Walk:
    """The state of one graph's walk.

    Args:
        name: of the graph, in the store's keys.
        stops: the tensors wanted at each step, in the order in which they will be asked for.
        engine: of each run of a segment.
    """

    def __init__(
        self,
        name: str,
        model: onnx.ModelProto,
        stops: Iterable[Iterable[str]],
        store: BatchStore,
        engine: Engine,
    ) -> None:
        self.name = name
        self.dataflow = Dataflow(model)
        self.store = store
        self.engine = engine
        self._stops = [tuple(s) for s in stops]
        self._frontiers: dict[int, frozenset[str]] = {}
        self._live: frozenset[str] = frozenset()

    def put_inputs(self, batch: int, inputs: Arrays) -> None:
        """The model's inputs for one batch."""
        for name, array in inputs.items():
            self.store.put((self.name, name, batch), array)
        self._frontiers[batch] = frozenset(inputs)

    def frontier(self, batch: int) -> frozenset[str]:
        """The tensors kept for a batch."""
        return self._frontiers[batch]

    def set_frontier(self, batch: int, names: Iterable[str]) -> None:
        """Called by a step."""
        self._frontiers[batch] = frozenset(names)

    def live(self) -> frozenset[str]:
        """The tensors that are needed after the current step."""
        return self._live

    def advance(self) -> Step:
        """The step to the next stop. Every batch must have run the step before."""
        targets = self._stops.pop(0)
        here = next(iter(self._frontiers.values()))
        nodes = self.dataflow.ancestors(targets, here)
        made = {name for node in nodes for name in node.output if name}
        later = set[str]().union(*self._stops)
        rest = self.dataflow.ancestors(later, here | made)
        self._live = frozenset(later.union(*map(self.dataflow.reads, rest)))
        read = {name for node in nodes for name in self.dataflow.reads(node)}
        inputs = tuple(name for name in dict.fromkeys(read) if name in here and name not in made)
        outputs = tuple(sorted(made & (self._live | set(targets))))
        return Step(self, Segment(tuple(nodes), tuple(sorted(inputs)), outputs), targets)
