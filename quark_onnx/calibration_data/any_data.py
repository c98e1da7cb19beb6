"""A reader of calibration data in whatever form it is at hand: arrays, items, a file, a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard, cast

import numpy as np
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, DataReader, ModelInput, checked_reader
from quark.onnx.calibration_data.path_reader import PathDataReader, Preprocess
from quark.onnx.calibration_data.ready_readers import IndexedReader, inputs_of
from quark.onnx.errors import DataError
from quark.onnx.model_files.model_file import ModelLike
from quark.onnx.own_errors import of_the_caller

__all__ = ["ArrayReader", "Data", "ItemReader", "checked_data", "data_reader"]

_LOG = logging.getLogger(__name__)

# A reader; a path; an array, or what converts itself to one; a dict of these; items of these.
Data: TypeAlias = DataReader | str | os.PathLike[str] | NDArray[Any] | Mapping[str, Any] | Iterable[Any]

_FORMS = (
    "an object with get_next(), an array, a dict from input name to array, a list or iterator of either, or the path "
    "of a folder or of a .npz or .npy file"
)


def checked_data(data: object) -> Data:
    """Calibration data in a form that `data_reader` takes. Nothing of it is read.

    Raises:
        DataError: it has no such form.
    """
    if isinstance(data, type) or hasattr(data, "get_next"):
        return cast(Data, checked_reader(data))
    if isinstance(data, (bytes, set, frozenset)) or not (
        isinstance(data, (str, os.PathLike, Mapping, Iterable)) or _is_array(data)
    ):
        raise DataError(f"calibration data is needed: {_FORMS}; not {type(data).__name__}")
    return cast(Data, data)


def data_reader(data: object, model: ModelLike, *, preprocess: Preprocess | None = None) -> DataReader:
    """A reader of the data for a model.

    Args:
        data: one of

            * an object with get_next(), which is returned as it is;
            * an array whose first axis counts samples, for a model of one input. It may be anything that NumPy takes by
              `__array__` or `__dlpack__`: a tensor of PyTorch, TensorFlow, JAX or CuPy, a column of pandas;
            * a dict from input name to such an array, all of as many samples;
            * a list, iterator or other iterable of items. Each is an array or a dict of arrays, of one sample (then the
              first axis may be missing) or several; of a model of several inputs also a tuple in their order;
            * the path of a .npz file with an array for each input, or of a .npy file;
            * the path of a folder, as for `PathDataReader`.

            Arrays become the model's type of floats, or of integers, where they have another one; integers do not
            become floats.
        model: a path or ModelProto.
        preprocess: of the files of a folder, as for `PathDataReader`.

    Raises:
        DataError: it has none of these forms, or does not fit the model.
        OSError: there is no such file or folder.
    """
    checked = checked_data(data)
    if preprocess is not None and not isinstance(checked, (str, os.PathLike)):
        raise DataError(
            f"preprocess is for the files of a folder, and the data is a {type(data).__name__}: leave it out"
        )
    if hasattr(checked, "get_next"):
        return cast(DataReader, checked)
    if isinstance(checked, (str, os.PathLike)):
        return _reader_of_path(Path(checked), model, preprocess)
    inputs = inputs_of(model, None)
    if isinstance(checked, Mapping):
        return ArrayReader(checked, inputs)
    if _is_array(checked):
        return ArrayReader({_only_input(inputs, "an array"): checked}, inputs)
    return ItemReader(cast("Iterable[Any]", checked), inputs)


def _reader_of_path(path: Path, model: ModelLike, preprocess: Preprocess | None) -> DataReader:
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        return PathDataReader(model, path, preprocess=preprocess)
    if preprocess is not None:
        raise DataError(f"preprocess is for the files of a folder, and {os.fspath(path)!r} is a file: leave it out")
    inputs = inputs_of(model, None)
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r" if path.suffix == ".npy" else None)
        arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"": loaded}
    except Exception as error:  # zipfile's, NumPy's, ...
        raise DataError(
            f"{os.fspath(path)!r} cannot be read as {path.suffix}: {type(error).__name__}: {error}"
        ) from error
    if len(arrays) == 1 and len(inputs) == 1:
        arrays = {inputs[0].name: next(iter(arrays.values()))}
    elif path.suffix == ".npy":
        _only_input(inputs, "a .npy file")
    return ArrayReader(arrays, inputs)


class ArrayReader(IndexedReader):
    """Samples that lie along the first axes of arrays; one sample an item, or as many as the model's batch has.

    Args:
        arrays: by input name.
        inputs: of the model.

    Raises:
        DataError: the names are not the inputs'; the arrays have different numbers of samples.
    """

    def __init__(self, arrays: Mapping[str, Any], inputs: tuple[ModelInput, ...]) -> None:
        wanted = [spec.name for spec in inputs]
        if set(arrays) != set(wanted):
            raise DataError(f"the calibration data has the names {sorted(map(str, arrays))}: the inputs are {wanted}")
        self._inputs = inputs
        self._arrays = {spec.name: _as_array(arrays[spec.name], spec, "the calibration data") for spec in inputs}
        self._batches = {spec.name: self._batch(spec) for spec in inputs}
        counts = {name: self._items_of(name) for name in wanted}
        several = {count for count in counts.values() if count != 1}
        if len(several) > 1:
            samples = {name: self._arrays[name].shape for name in wanted}
            raise DataError(f"the inputs have different numbers of samples: arrays of the shapes {samples}")
        self._length = several.pop() if several else 1
        self._warn_of_rest()

    def __len__(self) -> int:
        return self._length

    def item(self, index: int) -> Batch:
        return {spec.name: self._part(spec, index) for spec in self._inputs}

    def _batch(self, spec: ModelInput) -> int | None:
        """Samples of an item; None: the array is one item, whatever its axes; 0: an item has no axis of samples."""
        array = self._arrays[spec.name]
        if spec.shape is None:
            return 1 if array.ndim else None
        if array.ndim == len(spec.shape) + 1:
            return 0
        if array.ndim != len(spec.shape) or not spec.shape:
            return None
        return spec.shape[0] or 1

    def _items_of(self, name: str) -> int:
        batch, array = self._batches[name], self._arrays[name]
        if batch is None:
            return 1
        return len(array) if batch == 0 else max(1, len(array) // batch) if len(array) else 0

    def _part(self, spec: ModelInput, index: int) -> NDArray[np.generic]:
        batch, array = self._batches[spec.name], self._arrays[spec.name]
        index = index if self._items_of(spec.name) > 1 else 0  # what there is one of goes with every item
        if batch is None:
            part = array[None] if spec.shape is not None and array.ndim == len(spec.shape) - 1 else array
        elif batch == 0:
            part = array[index]
        else:
            part = array[index * batch : (index + 1) * batch]
        return _cast(np.asarray(part), spec)

    def _warn_of_rest(self) -> None:
        for name, batch in self._batches.items():
            if batch and len(self._arrays[name]) > batch and (rest := len(self._arrays[name]) % batch):
                _LOG.warning(
                    "the last %d samples of input %r are not used: the model takes %d at a time", rest, name, batch
                )


class ItemReader:
    """Items of any iterable.

    Args:
        items: each an array, a dict of arrays, or a tuple of arrays in the order of the inputs.
        inputs: of the model.
    """

    def __init__(self, items: Iterable[Any], inputs: tuple[ModelInput, ...]) -> None:
        self._items: Iterator[Any] = iter(items)
        self._following = of_the_caller(self._items.__next__)
        self._inputs, self._count = inputs, 0

    def get_next(self) -> Batch | None:
        """The next item, None at the end.

        Raises:
            DataError: it is no item of the model.
        """
        try:
            item = self._following()
        except StopIteration:
            return None
        where = f"item {self._count} of the calibration data"
        self._count += 1
        named = self._named(item, where)
        return {
            spec.name: self._with_samples(_as_array(named[spec.name], spec, where), spec)
            for spec in self._inputs
            if spec.name in named
        } | {name: value for name, value in named.items() if name not in {spec.name for spec in self._inputs}}

    def _named(self, item: object, where: str) -> Mapping[str, Any]:
        names = [spec.name for spec in self._inputs]
        if isinstance(item, Mapping):
            return item
        if _is_array(item):
            return {_only_input(self._inputs, f"{where}, which is an array"): item}
        if isinstance(item, (tuple, list)) and item and all(map(_is_array, item)):
            if len(item) == len(names):
                return dict(zip(names, item, strict=True))
            raise DataError(
                f"{where} has {len(item)} arrays, and the model's inputs are {names}. If labels are among them: "
                "data=(images for images, labels in loader)"
            )
        raise DataError(f"{where} is a {type(item).__name__}: give an array, or a dict from input name to array")

    @staticmethod
    def _with_samples(array: NDArray[np.generic], spec: ModelInput) -> NDArray[np.generic]:
        missing = spec.shape is not None and array.ndim == len(spec.shape) - 1
        return _cast(array[np.newaxis] if missing else array, spec)


def _is_array(data: object) -> TypeGuard[Any]:
    return hasattr(data, "__array__") or hasattr(data, "__dlpack__")


def _as_array(value: Any, spec: ModelInput, where: str) -> NDArray[np.generic]:
    if isinstance(value, np.ndarray):
        return value
    if not _is_array(value):
        raise DataError(f"{where}: input {spec.name!r} is a {type(value).__name__}: give an array")
    try:
        for step in ("detach", "cpu"):  # a tensor with a gradient, or of a GPU, does not convert itself
            value = getattr(value, step)() if hasattr(value, step) else value
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except Exception as error:  # of whatever made it
        kind = f"{type(error).__name__}: {error}"
        raise DataError(f"{where}: input {spec.name!r}, a {type(value).__name__}, gives no array: {kind}") from error


def _cast(array: NDArray[np.generic], spec: ModelInput) -> NDArray[np.generic]:
    """The array in the model's type where only the number of bits differs; else as it is, to be refused later."""
    same_kind = array.dtype.kind == spec.dtype.kind == "f" or {array.dtype.kind, spec.dtype.kind} <= {"i", "u"}
    if array.dtype == spec.dtype or not same_kind or isinstance(array, np.ma.MaskedArray):
        return array
    result = array.astype(spec.dtype)
    return array if spec.dtype.kind in "iu" and not np.array_equal(result, array) else result


def _only_input(inputs: tuple[ModelInput, ...], what: str) -> str:
    if len(inputs) != 1:
        raise DataError(f"{what} is for a model of one input, and the inputs are {[spec.name for spec in inputs]}")
    return inputs[0].name
