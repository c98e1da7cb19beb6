"""From the user's data reader to checked batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.errors import DataError
from quark.onnx.own_errors import of_the_caller

__all__ = [
    "Batch",
    "DataReader",
    "ModelInput",
    "checked_array",
    "checked_items",
    "checked_reader",
    "counts_samples",
    "is_end",
    "model_inputs",
    "sample_count",
]

Batch = dict[str, NDArray[np.generic]]


class DataReader(Protocol):
    """Anything with get_next(), as onnxruntime's CalibrationDataReader."""

    def get_next(self) -> Mapping[str, NDArray[np.generic]] | None:
        """The next item: an array for every model input; None (or {}) at the end."""


def checked_reader(reader: object) -> DataReader:
    """A reader.

    Raises:
        DataError: it is none.
    """
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
    """The inputs that a reader has to give: those that are not initializers as well."""
    constants = {t.name for t in model.graph.initializer}
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
    while not is_end(item := get_next()):
        where = f"item {index} of the calibration data reader"
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is a {type(item).__name__}: yield a dict from input name to NumPy array")
        yield {spec.name: checked_array(item[spec.name], spec, where) for spec in _same_names(item, inputs, where)}
        index += 1
    if index == 0:
        raise DataError("the calibration data reader yields nothing: its first get_next() returned no item")


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
        raise DataError(f"{what} is a {type(array).__name__}: yield a NumPy array")
    if array.dtype != spec.dtype:
        raise DataError(f"{what} is {array.dtype}: the model takes {spec.dtype}, convert it with astype")
    if spec.shape is not None and (
        array.ndim != len(spec.shape)
        or any(want is not None and want != have for want, have in zip(spec.shape, array.shape, strict=True))
    ):
        wanted = ", ".join("?" if d is None else str(d) for d in spec.shape)
        raise DataError(f"{what} has the shape {array.shape}: the model takes ({wanted})")
    if array.size == 0:
        raise DataError(f"{what} has the shape {array.shape} and is empty")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{what} contains NaN or Inf: clean the data first")
    return array
