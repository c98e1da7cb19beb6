"""The first items of the data, which are looked at before all of it is."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from quark.onnx.calibration_data.checked_items import Batch, DataReader, checked_items, first_samples, model_inputs
from quark.onnx.preparation.same_outputs import few_samples

__all__ = ["first_items"]

_ITEMS = 3
_BYTES = 64 << 20  # an item beyond it may be all of the data


def first_items(
    model: onnx.ModelProto, reader: DataReader, most: int | None = None
) -> tuple[list[Batch], Iterator[Batch]]:
    """Copies of the first samples of the first items, and all items, checked, as if none had been read.

    Args:
        model: what the items are inputs of.
        most: no item is read behind so many samples; None: all are.

    Raises:
        DataError: an item does not fit the model; the items raise it too.
    """
    items = first_samples(checked_items(reader, model_inputs(model)), most)
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
