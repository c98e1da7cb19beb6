"""The calibration samples of one finetuning: kept for the walk, and some set aside to compare whole models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

from quark.onnx.calibration.joining import BatchJoiner
from quark.onnx.calibration.reader import Batch, sample_count
from quark.onnx.fast_finetune.batch_store import BatchStore

__all__ = ["KeptSamples"]

_MOST_COMPARED = 64


class SetAside(Sequence[Batch]):
    """Batches in a store, loaded when they are asked for.

    Args:
        name: in the place of a graph's in the store's keys.

    Attributes:
        samples: of all batches.
    """

    def __init__(self, store: BatchStore, name: str) -> None:
        self._store, self._name = store, name
        self._inputs: list[tuple[str, ...]] = []
        self.samples = 0

    def add(self, batch: Batch) -> None:
        """Behind the others."""
        for name, array in batch.items():
            self._store.put((self._name, name, len(self)), array)
        self._inputs.append(tuple(batch))
        self.samples += sample_count(batch)

    def clear(self) -> None:
        """Forget them all."""
        for index, names in enumerate(self._inputs):
            for name in names:
                self._store.drop((self._name, name, index))
        self._inputs, self.samples = [], 0

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return {name: self._store.get((self._name, name, index)) for name in self._inputs[index]}


class KeptSamples:
    """Batches that pass by are kept in a store, up to a number of samples.

    Attributes:
        store: where they are, under the graph name "samples".
        samples: kept so far.
        batches: batches kept so far.
        compared: the batches to compare whole models on: held-out samples where whole samples are held out (as the
            core does with at least twice `holdout` samples) and batches can be divided, else the first ones.
        held_out: whether they were held out.

    Args:
        limit: the most samples to keep.
        holdout: every holdout-th sample is held out.
    """

    def __init__(self, store: BatchStore, limit: int, holdout: int) -> None:
        self.store, self._limit, self._holdout = store, limit, holdout
        self._names: tuple[str, ...] = ()
        self._sampled = SetAside(store, "held out")
        self._first = SetAside(store, "first")
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
        if self.held_out:
            self._first.clear()

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
        self._set_aside(batch, count, divisible=divisible)
        self.samples += count
        self.batches += 1

    def _set_aside(self, batch: Batch, count: int, *, divisible: bool) -> None:
        if self._first.samples < 2 * self._holdout:
            self._first.add(batch)
        if self._sampled.samples >= _MOST_COMPARED:
            return
        chosen = [i for i in range(count) if (self.samples + i) % self._holdout == self._holdout - 1]
        if count == 1 and chosen:
            self._sampled.add(batch)
        elif divisible and chosen:
            self._sampled.add({name: np.ascontiguousarray(array[chosen]) for name, array in batch.items()})

    @property
    def held_out(self) -> bool:
        return self.samples >= 2 * self._holdout and bool(self._sampled)

    @property
    def compared(self) -> SetAside:
        return self._sampled if self.held_out else self._first

    def load(self, batch: int) -> Batch:
        """A kept batch."""
        return {name: self.store.get(("samples", name, batch)) for name in self._names}

    def drop(self, batch: int) -> None:
        """Forget a kept batch."""
        for name in self._names:
            self.store.drop(("samples", name, batch))
