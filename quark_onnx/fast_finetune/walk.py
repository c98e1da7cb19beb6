"""Advance a graph through all calibration data, segment by segment, so that every node runs once per sample.

The walk holds the frontier: for every batch, the tensors that later nodes still need. The next segment holds the nodes
between the frontier and the tensors that are wanted next; onnxruntime runs it batch by batch, and what nobody needs any
more is dropped at once. Where the frontier would become much larger the walk stays, and runs the nodes of this step a
second time in the next. The frontier holds tensors only: nodes that make sequences, maps or optionals run in every step
that needs these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from threading import Lock

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.errors import FinetuneError
from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.graph.no_tensors import no_tensors
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.graph.still_needed import StillNeeded
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.stores.batch_store import BatchStore
from quark.onnx.system.memory_limit import unless_out_of_memory

__all__ = ["Advance", "Arrays", "Peek", "Walk"]

Arrays = dict[str, NDArray[np.generic]]


class Peek:
    """Tensors that later nodes make, computed from where a walk stands, which stays there.

    Call `run` for every batch, from any thread.
    """

    def __init__(self, walk: Walk, segment: Segment, targets: tuple[str, ...]) -> None:
        self._walk = walk
        self._segment = segment
        self._targets = targets
        self._session: ort.InferenceSession | None = None
        self._opening = Lock()

    def run(self, batch: int) -> Arrays:
        """The targets of one batch; the walk stays where it is.

        Raises:
            FinetuneError: onnxruntime cannot run the segment.
        """
        return self._targets_among(self._make(batch), batch)

    def _make(self, batch: int) -> Arrays:
        """The segment's outputs."""
        walk, segment = self._walk, self._segment
        if not segment.nodes:
            return {}
        feed = {name: walk.store.get((walk.name, name, batch)) for name in segment.inputs}
        try:
            values = self._opened(feed).run(list(segment.outputs), feed)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            wanted = ", ".join(map(repr, self._targets))
            otherwise = FinetuneError(f"onnxruntime cannot compute {wanted} of the {walk.name} graph: {error}")
            raise unless_out_of_memory(error, otherwise) from error
        return dict(zip(segment.outputs, values, strict=True))

    def _targets_among(self, made: Arrays, batch: int) -> Arrays:
        walk = self._walk
        return {
            name: made[name] if name in made else walk.store.get((walk.name, name, batch)) for name in self._targets
        }

    def _opened(self, feed: Arrays) -> ort.InferenceSession:
        """The session of the segment, with the initializers as they are at the first run."""
        with self._opening:
            if self._session is None:
                types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
                model = self._walk.dataflow.segment_model(self._segment, types)
                self._session = session(model, self._walk.engine)
            return self._session


class Advance(Peek):
    """One advance of a walk."""

    def run(self, batch: int) -> Arrays:
        """The targets of one batch; the frontier of this batch moves on.

        Raises:
            FinetuneError: onnxruntime cannot run the segment.
        """
        walk, before = self._walk, self._walk.frontier(batch)
        made = self._make(batch)
        targets = self._targets_among(made, batch)
        after = walk.live()
        for name in before - after:
            walk.store.drop((walk.name, name, batch))
        for name in after & made.keys():
            walk.store.put((walk.name, name, batch), made[name])
        walk.set_frontier(batch, after & (before | made.keys()))
        return targets


class Walk:
    """The state of one graph's walk.

    Args:
        name: of the graph, in the store's keys.
        stops: the tensors wanted at each step, in the order in which they will be asked for.
        engine: of each run of a segment.
        most_growth: bytes by which the frontier of a sample may grow in a step, as far as the model tells its shapes.
    """

    def __init__(
        self,
        name: str,
        model: onnx.ModelProto,
        stops: Iterable[Iterable[str]],
        store: BatchStore,
        engine: Engine,
        *,
        most_growth: float = math.inf,
    ) -> None:
        self.name = name
        self.dataflow = Dataflow(model)
        self.store = store
        self.engine = engine
        self._stops = [tuple(s) for s in stops]
        self._frontiers: dict[int, frozenset[str]] = {}
        self._live: frozenset[str] = frozenset()
        self._most_growth = most_growth
        self._no_tensors = no_tensors(model)
        self._needed = StillNeeded(self.dataflow, self._stops, self.dataflow.inputs)
        self._to_run_again: set[int] = set()  # nodes, by id

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

    def advance(self) -> Peek:
        """The way to the next stop. Every batch must have run the step before."""
        targets = self._stops.pop(0)
        here = self._here()
        nodes = self.dataflow.ancestors(targets, here)
        made = {name for node in nodes for name in node.output if name} - self._no_tensors
        self._needed.reached(targets)
        self._needed.made(made)
        live = frozenset(filter(self._needed.is_wanted, here | made))
        if self._bytes(live) - self._bytes(here) > self._most_growth and self._may_run_again(nodes):
            self._needed.not_made(made - here)
            self._to_run_again.update(map(id, nodes))
            return Peek(self, self._segment(nodes, here, frozenset(targets)), targets)
        self._live = live
        return Advance(self, self._segment(nodes, here, live.union(targets)), targets)

    def ahead(self, targets: tuple[str, ...]) -> Peek:
        """Tensors of a later stop, with the initializers as they are now. Every batch must have run the step before."""
        here = self._here()
        return Peek(self, self._segment(self.dataflow.ancestors(targets, here), here, frozenset(targets)), targets)

    def _may_run_again(self, nodes: list[onnx.NodeProto]) -> bool:
        """A node runs at most twice, so that the time stays proportional to the number of nodes."""
        return self._to_run_again.isdisjoint(map(id, nodes)) and not any(map(is_random, nodes))

    def _bytes(self, tensors: Iterable[str]) -> float:
        """Return how many bytes a sample of the tensors takes; NaN where the model does not tell."""
        return sum(self.dataflow.bytes_per_sample(name) for name in tensors)

    def _here(self) -> frozenset[str]:
        return next(iter(self._frontiers.values()))

    def _segment(self, nodes: list[onnx.NodeProto], here: frozenset[str], wanted: frozenset[str]) -> Segment:
        """Nodes behind the frontier `here`, of whose outputs some are wanted."""
        made = {name for node in nodes for name in node.output if name}
        read = {name for node in nodes for name in self.dataflow.reads(node)}
        return Segment(tuple(nodes), tuple(sorted(read & here - made)), tuple(sorted(made & wanted)))
