"""Joining a reader's items into batches of a useful size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from quark.onnx.calibration_data.checked_items import Batch, sample_count

__all__ = ["BatchJoiner", "CanJoin", "input_bytes"]

CanJoin = Callable[[Batch, Batch], bool]
_MOST_SAMPLES = 16  # of a batch: enough to keep onnxruntime busy, few enough for every processor to get a batch


class BatchJoiner:
    """Joins items along their first axis, in C order; each item is copied once.

    Args:
        can_join: whether the model gives for two items joined what it gives for each.
        most_bytes: of a batch's inputs; an item that has more is a batch of its own.
    """

    def __init__(self, can_join: CanJoin, most_bytes: float) -> None:
        self._can_join, self._most_bytes = can_join, most_bytes
        self._group: list[Batch] = []

    def add(self, item: Batch) -> Batch | None:
        """Take an item; the batch of those before it if that is complete now."""
        complete = None if self._fits(item) else self.rest()
        self._group.append({name: np.array(array, order="C") for name, array in item.items()})
        return complete

    def rest(self) -> Batch | None:
        """The batch of the items that were not given back yet."""
        group, self._group = self._group, []
        if len(group) > 1:
            return {name: np.concatenate([item[name] for item in group]) for name in group[0]}
        return group[0] if group else None

    def join(self, items: Iterable[Batch]) -> Iterator[Batch]:
        """All items as batches."""
        for item in items:
            if (batch := self.add(item)) is not None:
                yield batch
        if (batch := self.rest()) is not None:
            yield batch

    def _fits(self, item: Batch) -> bool:
        if not self._group:
            return True
        joined = (*self._group, item)
        return (
            sum(map(sample_count, joined)) <= _MOST_SAMPLES
            and sum(map(input_bytes, joined)) <= self._most_bytes
            and _alike(self._group[0], item)
            and self._can_join(self._group[0], item)
        )


def input_bytes(item: Batch) -> int:
    """Return how many bytes all arrays of an item or batch take."""
    return sum(array.nbytes for array in item.values())


def _alike(a: Batch, b: Batch) -> bool:
    return all(a[name].ndim > 0 and a[name].shape[1:] == b[name].shape[1:] for name in a)
