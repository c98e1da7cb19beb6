"""The first items of the data, which are looked at before all of it is."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.preparation.same_outputs import few_samples

__all__ = ["first_items"]

_ITEMS = 3
_BYTES = 64 << 20  # an item beyond it may be all of the data


def first_items(model: onnx.ModelProto, items: Iterator[Batch]) -> tuple[list[Batch], Iterator[Batch]]:
    """Copies of the first samples of the first items, and all items as if none had been read.

    Args:
        model: what the items are inputs of.

    Raises:
        DataError: what `items` raises.
    """
    few, ahead, size = list[Batch](), list[Batch](), 0
    while len(few) < _ITEMS and size < _BYTES:
        if ahead:  # a reader may use its memory again
            ahead[-1] = {name: array.copy() for name, array in ahead[-1].items()}
        item = next(items, None)
        if item is None:
            break
        ahead.append(item)
        few.append(few_samples(model, item))
        size += sum(array.nbytes for array in item.values())
        del item
    return few, _chained(ahead, items)


def _chained(ahead: list[Batch], items: Iterator[Batch]) -> Iterator[Batch]:
    while ahead:
        yield ahead.pop(0)
    yield from items
