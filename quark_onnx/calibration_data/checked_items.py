"""From the user's data reader to checked batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.errors import DataError
from quark.onnx.model_files.tensor_gate import check_type
from quark.onnx.own_errors import of_the_caller

__all__ = [
    "Batch",
    "DataReader",
    "ModelInput",
    "checked_array",
    "checked_items",
    "checked_reader",
    "counts_samples",
    "first_samples",
    "is_end",
    "model_inputs",
    "sample_count",
]

_LOG = logging.getLogger(__name__)
_MANY = 10_000  # items: more than most ranges need

Batch = dict[str, NDArray[np.generic]]


class DataReader(Protocol):
    """Anything with get_next(), as onnxruntime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, NDArray[np.generic]] | None:
        """The next item, read once: for every input of the model an array of its type and shape. The first axis counts
        samples, of which an item has one or several. None (or {}, or StopIteration) at the end.
        """


def checked_reader(reader: object) -> DataReader:
    """A reader.

    Raises:
        DataError: it is none.
    """
    if isinstance(reader, type) and hasattr(reader, "get_next"):
        name = reader.__name__
        raise DataError(f"a calibration data reader is needed, and {name} is a class: give an instance, {name}()")
    if not callable(getattr(reader, "get_next", None)):
        raise DataError(f"a calibration data reader is needed: an object with get_next(), not {type(reader).__name__}")
    return cast(DataReader, reader)


def sample_count(batch: Batch) -> int:
    """Samples of a batch: the length of its arrays' first axes (scalars aside); 1 where these differ."""
    lengths = {len(array) for array in batch.values() if array.ndim}
    return lengths.pop() if len(lengths) == 1 else 1


def counts_samples(model: onnx.ModelProto) -> bool:
    """Whether `sample_count` gives the same sum however the data is cut: all inputs have the same first axis, as far as
    the model says.
    """
    constants = {t.name for t in model.graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in model.graph.input if value.name not in constants]
    return len({(dims[0].dim_param, dims[0].dim_value) for dims in shapes if dims}) <= 1


@dataclass(frozen=True)
class ModelInput:
    """One input of a model.

    Attributes:
        shape: an int for a fixed dimension, None for a free one; None as a whole when the rank is not known.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None


def model_inputs(model: onnx.ModelProto) -> tuple[ModelInput, ...]:
    """The inputs that a reader has to give: those that are not initializers as well.

    Raises:
        ModelError: one is no tensor of a type that ONNX knows.
    """
    constants = {t.name for t in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constants:
            check_type(value.type.tensor_type.elem_type, f"the input {value.name!r}")
    return tuple(
        ModelInput(value.name, onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type), _shape(value))
        for value in model.graph.input
        if value.name not in constants
    )


def _shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...] | None:
    if not value.type.tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in value.type.tensor_type.shape.dim)


def checked_items(reader: DataReader, inputs: tuple[ModelInput, ...]) -> Iterator[Batch]:
    """The reader's items, each checked against the model's inputs.

    Raises:
        DataError: there is no item; or an item has a wrong name, type, dtype or shape, or NaN or Inf.
    """
    index, get_next = 0, of_the_caller(reader.get_next)
    while not is_end(item := _next(get_next)):
        where = f"item {index} of the calibration data reader"
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is a {type(item).__name__}: yield a dict from input name to NumPy array")
        yield {spec.name: checked_array(item[spec.name], spec, where) for spec in _same_names(item, inputs, where)}
        index += 1
        if index == _MANY:
            _LOG.warning(
                "%d items of the calibration data reader were read: does it end? CalibDataSize is how many samples "
                "calibration takes, data_size how many finetuning does",
                index,
            )
    if index == 0:
        raise DataError(
            "the calibration data reader yields nothing: its first get_next() returned no item. Where it was used "
            "before, it is at its end: give a new one"
        )


def _next(get_next: Callable[[], object]) -> object:
    try:
        return get_next()
    except StopIteration:  # a get_next() that is a bare next()
        return None


def first_samples(items: Iterator[Batch], limit: int | None) -> Iterator[Batch]:
    """The items that hold the first `limit` samples; all where it is None. No item behind them is read."""
    seen = 0
    for item in items:
        yield item
        seen += sample_count(item)
        if limit is not None and seen >= limit:
            return


def is_end(item: object) -> bool:
    """Whether it is what get_next() gives behind the last item."""
    return item is None or (isinstance(item, Mapping) and not item)


def _same_names(item: Mapping[str, object], inputs: tuple[ModelInput, ...], where: str) -> tuple[ModelInput, ...]:
    wanted = [spec.name for spec in inputs]
    if set(item) != set(wanted):
        raise DataError(f"{where} has the names {sorted(map(str, item))}: the model's inputs are {sorted(wanted)}")
    return inputs


def checked_array(array: NDArray[np.generic], spec: ModelInput, where: str) -> NDArray[np.generic]:
    """An array that is to be an input of a model.

    Args:
        where: it comes from, for the message.

    Raises:
        DataError: it has a wrong type, dtype or shape, is empty, or holds NaN or Inf.
    """
    what = f"{where}: input {spec.name!r}"
    if not isinstance(array, np.ndarray):
        raise DataError(f"{what} is a {type(array).__name__}: yield a NumPy array{_how_to_convert(array)}")
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(f"{what} is a masked array, and no model takes masks: fill it, by .filled(value)")
    if array.dtype != spec.dtype:
        raise DataError(
            f"{what} is {array.dtype}: the model takes {spec.dtype}, convert it with astype{_as_images(array, spec)}"
        )
    if spec.shape is not None and not _fits(array.shape, spec.shape):
        wanted = ", ".join("?" if d is None else str(d) for d in spec.shape)
        hint = _how_to_fit(array.shape, spec.shape)
        raise DataError(f"{what} has the shape {array.shape}: the model takes ({wanted}){hint}")
    if array.size == 0:
        raise DataError(f"{what} has the shape {array.shape} and is empty")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        is_mask = not np.isnan(array).any() and array.max() < np.inf
        remedy = "for a mask, give -1e4 or the lowest finite float in its place" if is_mask else "clean the data first"
        raise DataError(f"{what} contains NaN or Inf: {remedy}")
    return array


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(
        want is None or want == have for want, have in zip(wanted, shape, strict=True)
    )


def _how_to_convert(array: object) -> str:
    if hasattr(array, "detach") and hasattr(array, "numpy"):
        return ", x.detach().cpu().numpy()"
    if hasattr(array, "numpy"):
        return ", x.numpy()"
    return ", np.asarray(x)" if isinstance(array, (list, tuple, int, float)) or hasattr(array, "__array__") else ""


def _as_images(array: NDArray[np.generic], spec: ModelInput) -> str:
    if array.dtype != np.uint8 or spec.dtype.kind != "f" or array.ndim < 3:
        return ""
    return ", and scale it as in training: images of 0 to 255 are most often divided by 255 and normalized"


def _how_to_fit(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> str:
    """What makes the model's shape of a usual other one."""
    if len(wanted) > 2 and len(shape) == len(wanted):
        last = len(shape) - 1
        for order in ((0, last, *range(1, last)), (0, *range(2, last + 1), 1)):  # channels to the front, to the end
            if _fits(tuple(shape[axis] for axis in order), wanted):
                return f". If its axes are in another order: x.transpose{order}"
    if _fits((1, *shape), wanted):
        return ". If the axis of the batch is missing: x[None]"
    if shape[:1] == (1,) and _fits(shape[1:], wanted):
        return ". If there is an axis too many: x[0]"
    if wanted and len(shape) == len(wanted) and _fits(shape[1:], wanted[1:]):
        return f". Its batch is fixed: give {wanted[0]} at a time, or export the model with a free first axis"
    return ""
