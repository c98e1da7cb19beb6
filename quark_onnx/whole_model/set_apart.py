"""Samples set apart from a stream of calibration data, to compare whole models on: nothing is fitted to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.calibration_data.joining import input_bytes
from quark.onnx.solvers.holdout import HOLDOUT
from quark.onnx.stores.batch_store import BatchStore

__all__ = ["FEWEST", "SetApart", "StoredBatches"]

FEWEST = 40  # samples of which some are set apart; of fewer, each is needed to fit
_EVERY = 8
_MOST, _MOST_BYTES = 64, 256 << 20  # samples set apart, and their bytes


class StoredBatches(Sequence[Batch]):
    """Batches in a store, loaded when they are asked for.

    Args:
        name: in the place of a graph's in the store's keys.

    Attributes:
        samples: of all batches.
        bytes: of all their arrays.
    """

    def __init__(self, store: BatchStore, name: str) -> None:
        self._store, self._name = store, name
        self._inputs: list[tuple[str, ...]] = []
        self.samples = self.bytes = 0

    def add(self, batch: Batch) -> None:
        """Adds a batch behind the others; the arrays must not change any more."""
        for name, array in batch.items():
            self._store.put((self._name, name, len(self)), array)
        self._inputs.append(tuple(batch))
        self.samples += sample_count(batch)
        self.bytes += input_bytes(batch)

    def drop(self, index: int) -> None:
        """Free a batch, which is not asked for again."""
        for name in self._inputs[index]:
            self._store.drop((self._name, name, index))

    def drop_all(self) -> None:
        """Free all batches."""
        for index in range(len(self)):
            self.drop(index)

    def __len__(self) -> int:
        return len(self._inputs)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if index >= len(self):
            raise IndexError(index)
        return {name: self._store.get((self._name, name, index)) for name in self._inputs[index]}


class SetApart:
    """Every eighth sample of a stream of at least `FEWEST`, `_MOST` at most; where items cannot be divided, every
    eighth item, and of fewer than eight none. Which samples these are does not depend on how a reader cuts items that
    can be divided.

    Args:
        store: holds them, and up to `FEWEST` samples until it is clear whether the stream has so many.
        most_bytes: of samples set apart, from which on there are no more.

    Attributes:
        compared: the samples to compare whole models on: those set apart; of a shorter stream those that the solvers
            hold out to choose among candidates, or all; of a few items that cannot be divided the first.
        held_out: whether the samples compared took no part in ranges, scales, candidates or integers.
        seen: samples that the stream has given so far.
    """

    def __init__(self, store: BatchStore, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.compared = StoredBatches(store, "compared")
        self._waiting = StoredBatches(store, "waiting")
        self._undivided = StoredBatches(store, "undivided")  # the first of them, until another one is set apart
        self.held_out = False
        self.seen = self._items = self._passed = 0
        self._enough = False

    def split(self, items: Iterator[Batch], *, divisible: bool) -> Iterator[Batch]:
        """The items without the samples set apart.

        Args:
            divisible: the model takes a part of a batch too.
        """
        for item in items:
            self.seen += sample_count(item)
            if not self._enough and self.seen < FEWEST:
                self._waiting.add(_copied(item))
                continue
            if not self._enough:
                self._enough = True
                for earlier in self._released():
                    yield from self._rest(earlier, divisible=divisible)
            yield from self._rest(item, divisible=divisible)
        if not self._enough:
            for item in self._released():
                self._keep_fitted(item, divisible=divisible)
                yield item
        elif not self.held_out:
            self.compared.add(self._undivided[0])
        if len(self._undivided):
            self._undivided.drop(0)

    def _released(self) -> Iterator[Batch]:
        for index in range(len(self._waiting)):
            item = self._waiting[index]
            self._waiting.drop(index)
            yield item

    def _rest(self, item: Batch, *, divisible: bool) -> Iterator[Batch]:
        """What is not set apart of an item, if anything is left."""
        count, start = sample_count(item), self._passed
        self._passed += count
        self._items += 1
        if self.compared.samples >= _MOST or self.compared.bytes >= self._most_bytes:
            yield item
        elif not _is_divisible(item, divisible=divisible):
            if self._items % _EVERY == 0:
                self._set_apart(_copied(item))
                return
            if not len(self._undivided):
                self._undivided.add(_copied(item))
            yield item
        else:
            chosen = [i for i in range(count) if (start + i) % _EVERY == _EVERY - 1]
            chosen = chosen[: _MOST - self.compared.samples]
            if not chosen:
                yield item
                return
            apart = np.zeros(count, bool)
            apart[chosen] = True
            self._set_apart(_picked(item, apart))
            if not apart.all():
                yield _picked(item, ~apart)

    def _set_apart(self, batch: Batch) -> None:
        self.compared.add(batch)
        self.held_out = True

    def _keep_fitted(self, item: Batch, *, divisible: bool) -> None:
        """Keeps samples to compare on that solvers are fitted to as well."""
        count, start = sample_count(item), self._passed
        self._passed += count
        if self.seen < 2 * HOLDOUT or not (_is_divisible(item, divisible=divisible) or count == 1):
            self.compared.add(item)
            return
        chosen = (start + np.arange(count)) % HOLDOUT == HOLDOUT - 1
        if count == 1 and chosen.all():
            self.compared.add(item)
        elif chosen.any():
            self.compared.add(_picked(item, chosen))


def _is_divisible(item: Batch, *, divisible: bool) -> bool:
    return divisible and len({array.shape[:1] for array in item.values()}) == 1 and all(a.ndim for a in item.values())


def _copied(item: Batch) -> Batch:
    return {name: np.array(array) for name, array in item.items()}


def _picked(item: Batch, chosen: NDArray[np.bool_]) -> Batch:
    return {name: np.ascontiguousarray(array[chosen]) for name, array in item.items()}
