"""The calibration samples of one finetuning, kept for the walk."""

from __future__ import annotations

from collections.abc import Iterator

from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.calibration_data.joining import BatchJoiner
from quark.onnx.stores.batch_store import BatchStore

__all__ = ["KeptSamples"]


class KeptSamples:
    """Batches that pass by are kept in a store, up to a number of samples.

    Attributes:
        store: where they are, under the graph name "samples".
        samples: kept so far.
        batches: batches kept so far.

    Args:
        limit: the most samples to keep.
    """

    def __init__(self, store: BatchStore, limit: int) -> None:
        self.store, self._limit = store, limit
        self._names: tuple[str, ...] = ()
        self.samples = 0
        self.batches = 0

    def keep(self, items: Iterator[Batch], joiner: BatchJoiner, *, divisible: bool) -> Iterator[Batch]:
        """Passes all items on, and keeps the first `limit` samples as batches.

        Args:
            divisible: the model takes a part of a batch too. Otherwise whole batches are kept, at least one.
        """
        for item in items:
            if self.samples < self._limit and (batch := joiner.add(item)) is not None:
                self._keep(batch, divisible=divisible)
            yield item
        if (batch := joiner.rest()) is not None and self.samples < self._limit:
            self._keep(batch, divisible=divisible)

    def _keep(self, batch: Batch, *, divisible: bool) -> None:
        count, room = sample_count(batch), self._limit - self.samples
        divisible = divisible and all(array.ndim for array in batch.values())
        if count > room and divisible:
            batch, count = {name: array[:room] for name, array in batch.items()}, room
        elif count > room and self.batches:
            self._limit = self.samples
            return
        for name, array in batch.items():
            self.store.put(("samples", name, self.batches), array)
        self._names = tuple(batch)
        self.samples += count
        self.batches += 1

    def load(self, batch: int) -> Batch:
        """A kept batch."""
        return {name: self.store.get(("samples", name, batch)) for name in self._names}

    def drop(self, batch: int) -> None:
        """Forget a kept batch."""
        for name in self._names:
            self.store.drop(("samples", name, batch))
