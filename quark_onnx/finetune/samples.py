"""The calibration samples of one finetuning: kept for the walk, and some set aside to compare whole models."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from quark.onnx.calibration.reader import Batch
from quark.onnx.finetune.batch_store import BatchStore

__all__ = ["KeptSamples"]

_MOST_COMPARED = 64


class KeptSamples:
    """Batches that pass by are kept in a store, up to a number of samples.

    Attributes:
        store: where they are, under the graph name "samples".
        samples: kept so far.
        batches: batches kept so far.
        compared: the batches to compare whole models on: held-out samples where whole samples are held out (as the
            core does with at least twice `holdout` samples), else the first ones.
        held_out: whether they were held out.

    Args:
        limit: the most samples to keep.
        holdout: every holdout-th sample is held out.
    """

    def __init__(self, store: BatchStore, limit: int, holdout: int) -> None:
        self.store, self._limit, self._holdout = store, limit, holdout
        self._names: tuple[str, ...] = ()
        self._sampled: list[Batch] = []
        self._first: list[Batch] = []
        self.samples = 0
        self.batches = 0

    def keep(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes all batches on, and keeps the first `limit` samples."""
        for batch in batches:
            if self.samples < self._limit:
                self._keep(batch)
            yield batch

    def _keep(self, batch: Batch) -> None:
        count = _count(batch)
        if self.samples + count > self._limit and all(len(a) == count for a in batch.values()):
            count = self._limit - self.samples
            batch = {name: array[:count] for name, array in batch.items()}
        for name, array in batch.items():
            self.store.put(("samples", name, self.batches), array)
        self._names = tuple(batch)
        self._set_aside(batch, count)
        self.samples += count
        self.batches += 1

    def _set_aside(self, batch: Batch, count: int) -> None:
        if sum(map(_count, self._first)) < 2 * self._holdout:
            self._first.append(batch)
        if sum(map(_count, self._sampled)) >= _MOST_COMPARED:
            return
        chosen = [i for i in range(count) if (self.samples + i) % self._holdout == self._holdout - 1]
        if not chosen:
            return
        if count == 1 or any(len(a) != count for a in batch.values()):
            self._sampled.append(batch)
        else:
            self._sampled.append({name: np.ascontiguousarray(array[chosen]) for name, array in batch.items()})

    @property
    def held_out(self) -> bool:
        return self.samples >= 2 * self._holdout and bool(self._sampled)

    @property
    def compared(self) -> list[Batch]:
        return self._sampled if self.held_out else self._first

    def load(self, batch: int) -> Batch:
        """A kept batch."""
        return {name: self.store.get(("samples", name, batch)) for name in self._names}

    def drop(self, batch: int) -> None:
        """Forget a kept batch."""
        for name in self._names:
            self.store.drop(("samples", name, batch))


def _count(batch: Batch) -> int:
    first = next(iter(batch.values()))
    return len(first) if first.ndim else 1
