"""Which tensors a walk through a graph still needs, kept up to date with every step, in time that grows with the nodes.

A node is needed as long as a later stop, or another needed node, wants one of its outputs that is not available. Each
tensor counts who wants it, each node its outputs that are wanted: a graph has no cycles, so counting is exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from quark.onnx.graph.dataflow import Dataflow

__all__ = ["StillNeeded"]


class StillNeeded:
    """What is needed for stops that are still to come.

    Args:
        stops: the tensors wanted at each; one may be wanted at several.
        available: tensors that are there from the start.
    """

    def __init__(self, dataflow: Dataflow, stops: Iterable[Iterable[str]], available: Iterable[str]) -> None:
        self._dataflow = dataflow
        self._available = set(available)
        self._wanted, self._needed = Counter[str](), Counter[int]()  # tensors; nodes, by id
        for stop in stops:
            self._settle(set(stop), self._want)

    def is_wanted(self, tensor: str) -> bool:
        """Whether a later stop, or a node that is still to run, wants it."""
        return self._wanted[tensor] > 0

    def reached(self, stop: Iterable[str]) -> None:
        """A stop is not to come any more."""
        self._settle(set(stop), self._release)

    def made(self, tensors: Iterable[str]) -> None:
        """Tensors are available from now on."""
        for tensor in set(tensors) - self._available:
            self._available.add(tensor)
            if self._wanted[tensor]:
                self._settle(self._without_output(tensor), self._release)

    def not_made(self, tensors: Iterable[str]) -> None:
        """Tensors are not available after all."""
        for tensor in set(tensors) & self._available:
            self._available.remove(tensor)
            if self._wanted[tensor]:
                self._settle(self._with_output(tensor), self._want)

    def _settle(self, tensors: Iterable[str], change: Callable[[str], Iterable[str]]) -> None:
        """Change tensors, and what follows from it."""
        left = list(tensors)
        while left:
            left.extend(change(left.pop()))

    def _want(self, tensor: str) -> Iterable[str]:
        """One more wants a tensor. What its node reads is wanted if it was not needed before."""
        self._wanted[tensor] += 1
        first = self._wanted[tensor] == 1 and tensor not in self._available
        return self._with_output(tensor) if first else ()

    def _release(self, tensor: str) -> Iterable[str]:
        self._wanted[tensor] -= 1
        last = not self._wanted[tensor] and tensor not in self._available
        return self._without_output(tensor) if last else ()

    def _with_output(self, tensor: str) -> Iterable[str]:
        node = self._dataflow.producer.get(tensor)
        if node is None or self._dataflow.is_constant(tensor):
            return ()
        self._needed[id(node)] += 1
        return self._dynamic_reads(tensor) if self._needed[id(node)] == 1 else ()

    def _without_output(self, tensor: str) -> Iterable[str]:
        node = self._dataflow.producer.get(tensor)
        if node is None or self._dataflow.is_constant(tensor):
            return ()
        self._needed[id(node)] -= 1
        return () if self._needed[id(node)] else self._dynamic_reads(tensor)

    def _dynamic_reads(self, tensor: str) -> set[str]:
        """What the node that makes a tensor reads, constants apart."""
        reads = self._dataflow.reads(self._dataflow.producer[tensor])
        return {name for name in reads if not self._dataflow.is_constant(name)}
