"""Data readers that need nothing from the user's own code: random data, and a cache in front of another reader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, DataReader, ModelInput, is_end, model_inputs
from quark.onnx.errors import DataError
from quark.onnx.model_files.model_file import ModelLike, load_model

__all__ = ["CachedDataReader", "IndexedReader", "InputShapes", "RandomDataReader", "inputs_of"]

InputShapes = Mapping[str, Sequence[int]] | Sequence[int]


class IndexedReader(ABC):
    """A reader whose items can be made in any order, each when it is its turn."""

    _next = 0

    @abstractmethod
    def __len__(self) -> int:
        """How many items there are."""

    @abstractmethod
    def item(self, index: int) -> Batch:
        """An item: for every input of the model an array of its type, whose first axis counts samples."""

    def get_next(self) -> Batch | None:
        """The next item, None at the end."""
        if self._next >= len(self):
            return None
        self._next += 1
        return self.item(self._next - 1)

    def reset_iter(self) -> None:
        """Begin again with the first item."""
        self._next = 0

    rewind = reset_iter  # as onnxruntime's examples call it

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.get_next, None)


def inputs_of(model: ModelLike, shapes: InputShapes | None) -> tuple[ModelInput, ...]:
    """The inputs that a model needs data for.

    Args:
        shapes: input -> the shape that its data has, in place of free dimensions of the model; the shape alone if there
            is one input.

    Raises:
        DataError: a shape is for no input, or does not fit it.
    """
    loaded = model if isinstance(model, onnx.ModelProto) else load_model(model, role="model")
    inputs = model_inputs(loaded)
    if not shapes:
        return inputs
    if not isinstance(shapes, Mapping):
        if len(inputs) > 1:
            names = ", ".join(spec.name for spec in inputs)
            raise DataError(f"input_shape: got {shapes!r} for the inputs {names}: give a dict from input to shape")
        shapes = {inputs[0].name: shapes}
    if unknown := sorted(set(shapes) - {spec.name for spec in inputs}):
        raise DataError(f"input_shape: {unknown[0]!r} is no input of the model: {[spec.name for spec in inputs]}")
    return tuple(_reshaped(spec, shapes[spec.name]) if spec.name in shapes else spec for spec in inputs)


def _reshaped(spec: ModelInput, given: Sequence[int]) -> ModelInput:
    shape = tuple(given)
    fixed = shape if spec.shape is None else spec.shape
    fits = len(fixed) == len(shape) and all(want in (None, have) for want, have in zip(fixed, shape, strict=True))
    if not fits or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise DataError(f"input_shape of {spec.name!r}: got {shape}, the model takes {spec.shape}")
    return replace(spec, shape=shape)


class RandomDataReader(IndexedReader):
    """Random data, for trying things out: the ranges that come from it say nothing about real data.

    Floats are drawn evenly from 0 to 1, or from the range given, ends included in the case of integers; integers
    without a range are 0. Free dimensions of the model become 1, those of images (four axes) 3 x 32 x 32, the second
    of two axes 16.

    Args:
        model_input: the model, as a path or ModelProto.
        input_shape: input -> its shape; the shape alone if there is one input.
        input_data_range: input -> (lowest, highest), for all inputs.
        seed: of the first item; the next one has the next.
        items: how many.

    Raises:
        DataError: a shape or range is missing, or does not fit the model.
    """

    def __init__(
        self,
        model_input: ModelLike,
        input_shape: InputShapes | None = None,
        input_data_range: Mapping[str, Sequence[float]] | None = None,
        *,
        seed: int = 42,
        items: int = 1,
    ) -> None:
        self._inputs = [(spec, _size(spec)) for spec in inputs_of(model_input, input_shape)]
        self._ranges, self._seed, self._items = input_data_range, seed, items
        for spec, _ in self._inputs:
            if input_data_range is not None and spec.name not in input_data_range:
                raise DataError(f"input_data_range: input {spec.name!r} is missing: give (lowest, highest) of each")

    def __len__(self) -> int:
        return self._items

    def item(self, index: int) -> Batch:
        return {spec.name: self._drawn(spec, size, self._seed + index) for spec, size in self._inputs}

    def _drawn(self, spec: ModelInput, size: tuple[int, ...], seed: int) -> NDArray[np.generic]:
        low, high = (0.0, 1.0) if self._ranges is None else self._ranges[spec.name]
        drawn = np.random.RandomState(seed).random_sample(size)  # AMD Quark's numbers
        if spec.dtype.kind == "b":
            return np.asarray(drawn >= 0.5)
        if spec.dtype.kind in "iu":
            steps = 0.0 if self._ranges is None else high - low + 1
            return np.asarray(low + np.floor(steps * drawn)).astype(spec.dtype)
        return np.asarray(low + (high - low) * drawn).astype(spec.dtype)


def _size(spec: ModelInput) -> tuple[int, ...]:
    if spec.shape is None:
        raise DataError(f"input {spec.name!r} has no known rank: give its input_shape")
    usual = {4: (1, 3, 32, 32), 2: (1, 16)}.get(len(spec.shape), (1,) * len(spec.shape))
    return tuple(have or size for have, size in zip(spec.shape, usual, strict=True))


class CachedDataReader:
    """Another reader's items, kept so that they can be read again; each is read when it is needed first.

    Args:
        dr: the reader, read once.
        data_size: how many items are read at most; all by default.
        convert_nchw_to_nhwc: the second of four axes becomes the last.
        quantize_fp16: float32 arrays become float16.

    Raises:
        DataError: there is no item, or one is no dict from input to NumPy array.
    """

    def __init__(
        self,
        dr: DataReader,
        data_size: int | None = None,
        *,
        convert_nchw_to_nhwc: bool = False,
        quantize_fp16: bool = False,
    ) -> None:
        self._source, self._most = dr, data_size
        self._to_nhwc, self._to_fp16 = convert_nchw_to_nhwc, quantize_fp16
        self._kept: list[Batch] = []
        self._next, self._ended = 0, False
        if not self._read():
            raise DataError("No data in the input calibration data reader: its first get_next() returned no item")

    def __len__(self) -> int:
        while self._read():
            pass
        return len(self._kept)

    def get_next(self) -> Batch | None:
        """The next item, None at the end."""
        if self._next == len(self._kept) and not self._read():
            return None
        self._next += 1
        return dict(self._kept[self._next - 1])

    def reset_iter(self) -> None:
        """Begin again with the first item."""
        self._next = 0

    rewind = reset_iter  # as onnxruntime's examples call it

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.get_next, None)

    def _read(self) -> bool:
        """Keep one more item of the other reader; whether there was one."""
        if self._ended or (self._most is not None and len(self._kept) >= self._most):
            return False
        try:
            item = self._source.get_next()
        except StopIteration:  # a get_next() that is a bare next()
            item = None
        self._ended = is_end(item)
        if self._ended:
            return False
        where = f"item {len(self._kept)} of the calibration data reader"
        if not isinstance(item, Mapping):
            raise DataError(f"{where} is a {type(item).__name__}: yield a dict from input name to NumPy array")
        self._kept.append({name: self._converted(array, f"{where}: {name!r}") for name, array in item.items()})
        return True

    def _converted(self, array: NDArray[np.generic], where: str) -> NDArray[np.generic]:
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where} is a {type(array).__name__}: yield a NumPy array")
        if isinstance(array, np.ma.MaskedArray):
            raise DataError(f"{where} is a masked array, and no model takes masks: fill it, by .filled(value)")
        if self._to_nhwc and array.ndim == 4:
            array = array.transpose(0, 2, 3, 1)
        to_half = self._to_fp16 and array.dtype == np.float32
        return np.array(array, np.float16 if to_half else array.dtype, order="C")  # a copy: memory may be used again
