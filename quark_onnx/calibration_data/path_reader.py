"""A data reader of files: .npy arrays, or images and a function that makes arrays of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, ModelInput, checked_array
from quark.onnx.calibration_data.ready_readers import IndexedReader, InputShapes, inputs_of
from quark.onnx.errors import DataError
from quark.onnx.model_files.model_file import ModelLike

__all__ = ["PathDataReader"]

_IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_HOW_IMAGES = (
    ": give preprocess, which makes arrays of the images there: --preprocess imagenet on the command line, "
    'quantize(..., preprocess="imagenet") in Python, or a function of yours'
)

Preprocess = Callable[[Path], NDArray[np.generic]]


class PathDataReader(IndexedReader):
    """The files of a folder, one item each, in the order of their names; each is read when it is its turn.

    For a model of one input they lie in the folder; for a model of several, in a folder of each input's name below it.
    Arrays are cast to the input's type where that loses no fractions, and get a first axis of length 1 where one is
    missing.

    Args:
        model_input: the model, as a path or ModelProto.
        data_path: the folder.
        input_shape: input -> the shape that its data has; the shape alone if there is one input.
        preprocess: makes an array of a file, whose path it gets. With it, images count too (.png, .jpg, ...), and those
            of the folders below; without it, only .npy files of the folder itself.

    Raises:
        OSError: there is no such folder, or no file in it.
        DataError: inputs have different numbers of files; the shapes do not fit the model. When an item's turn comes: a
            file cannot be read, or what it holds does not fit the input.
    """

    def __init__(
        self,
        model_input: ModelLike,
        data_path: str | os.PathLike[str],
        input_shape: InputShapes | None = None,
        *,
        preprocess: Preprocess | None = None,
    ) -> None:
        folder = Path(data_path)
        if not folder.exists():
            raise FileNotFoundError(f"there is no folder of calibration data at {os.fspath(folder)!r}")
        if not folder.is_dir():
            raise NotADirectoryError(f"{os.fspath(folder)!r} is a file: give the folder that it lies in")
        self._inputs = inputs_of(model_input, input_shape)
        self._preprocess = preprocess
        self._files = {
            name: _files(place, with_images=preprocess is not None)
            for name, place in _places(folder, [spec.name for spec in self._inputs]).items()
        }
        counts = {name: len(files) for name, files in self._files.items()}
        if len(set(counts.values())) > 1:
            raise DataError(f"the inputs have different numbers of files in {os.fspath(folder)!r}: {counts}")

    def __len__(self) -> int:
        return min(map(len, self._files.values()))

    def item(self, index: int) -> Batch:
        return {spec.name: self._array(self._files[spec.name][index], spec) for spec in self._inputs}

    def _array(self, file: Path, spec: ModelInput) -> NDArray[np.generic]:
        where = f"file {os.fspath(file)!r}"
        try:
            array = np.load(file, allow_pickle=False) if self._preprocess is None else self._preprocess(file)
        except Exception as error:  # of whatever reads images
            step = "cannot be read as .npy" if self._preprocess is None else "makes preprocess() fail"
            raise DataError(f"{where} {step}: {type(error).__name__}: {error}") from error
        if not isinstance(array, np.ndarray):
            raise DataError(f"{where}: preprocess() returned a {type(array).__name__}: return a NumPy array")
        if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
            raise DataError(f"{where} holds {array.dtype}, which the input {spec.name!r} of {spec.dtype} cannot take")
        array = array.astype(spec.dtype)
        if spec.shape is not None and array.ndim == len(spec.shape) - 1:
            array = array[np.newaxis]
        return checked_array(array, spec, where)


def _places(folder: Path, inputs: list[str]) -> dict[str, Path]:
    """The folder of each input's files."""
    below = {name: folder / name for name in inputs if not _leaves(name)}
    missing = [name for name in inputs if name not in below or not below[name].is_dir()]
    if len(inputs) == 1 and missing:
        return {inputs[0]: folder}
    if odd := [name for name in inputs if name not in below]:
        raise DataError(f"the model's input {odd[0]!r} is the name of no folder below {os.fspath(folder)!r}: rename it")
    if missing:
        raise FileNotFoundError(f"{os.fspath(folder)!r} has no folder {missing[0]!r}: the model's inputs are {inputs}")
    return below


def _leaves(name: str) -> bool:
    """Whether a folder of this name may lie elsewhere: a model must not choose what is read."""
    path = Path(name)
    return not name or "\0" in name or path.is_absolute() or ".." in path.parts


def _files(folder: Path, *, with_images: bool) -> list[Path]:
    found = sorted(folder.rglob("*") if with_images else folder.iterdir())
    images = [file for file in found if file.suffix.lower() in _IMAGES]
    arrays = [file for file in found if file.suffix.lower() == ".npy"]
    if with_images:
        arrays = sorted(arrays + images)
    if not arrays:
        hint = _HOW_IMAGES if images else ""
        kinds = ".npy file and no image" if with_images else ".npy file"
        raise FileNotFoundError(f"there is no {kinds} in {os.fspath(folder)!r}{hint}")
    return arrays
