"""Where the walk keeps tensors between segments: in memory, or in files of which one batch is read at a time."""

from __future__ import annotations

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from quark.onnx.stores.array_file import ArrayFile, KeptArray
from quark.onnx.stores.mapped_file import Array, MappedFile

__all__ = ["BatchStore", "FileStore", "MemoryStore"]

_FILE_BYTES = 256 << 20  # of a file that arrays are mapped from
Key = tuple[str, str, int]  # graph, tensor, batch


class BatchStore(ABC):
    """Arrays by (graph, tensor, batch); several threads may use different keys at a time.

    Use as a context manager: leaving it frees everything.
    """

    @abstractmethod
    def put(self, key: Key, array: NDArray[np.generic]) -> None:
        """Keep an array; replaces what is there."""

    @abstractmethod
    def get(self, key: Key) -> NDArray[np.generic]:
        """A kept array."""

    @abstractmethod
    def mapped(self, array: Array) -> Array:
        """Return the array so that it is read piece by piece. It has no key: it is there as long as it is used."""

    @abstractmethod
    def drop(self, key: Key) -> None:
        """Forget a kept array."""

    @abstractmethod
    def close(self) -> None:
        """Forget all arrays."""

    def __enter__(self) -> BatchStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class MemoryStore(BatchStore):
    """Memory levels 0 and 1."""

    def __init__(self) -> None:
        self._arrays: dict[Key, NDArray[np.generic]] = {}

    def put(self, key: Key, array: NDArray[np.generic]) -> None:
        self._arrays[key] = array

    def get(self, key: Key) -> NDArray[np.generic]:
        return self._arrays[key]

    def mapped(self, array: Array) -> Array:
        return array

    def drop(self, key: Key) -> None:
        del self._arrays[key]

    def close(self) -> None:
        self._arrays.clear()


class FileStore(BatchStore):
    """Memory level 2: files without names under `cache_dir` (default: the system's temporary folder)."""

    def __init__(self, cache_dir: str | os.PathLike[str] | None) -> None:
        self._place = "the system's temporary folder" if cache_dir is None else f"cache_dir {os.fspath(cache_dir)!r}"
        try:
            if cache_dir is not None:
                Path(cache_dir).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.gettempdir() if cache_dir is None else cache_dir
            self._arrays = ArrayFile(self._folder)
        except OSError as error:
            raise OSError(error.errno, f"{self._place} cannot hold files: {error.strerror}") from error
        self._kept: dict[Key, KeptArray] = {}
        self._mapped: MappedFile | None = None
        self._mapping = Lock()

    def put(self, key: Key, array: NDArray[np.generic]) -> None:
        with self._writing():
            kept = self._arrays.add(array)
        before = self._kept.get(key)
        self._kept[key] = kept
        if before is not None:
            self._arrays.remove(before)

    def get(self, key: Key) -> NDArray[np.generic]:
        return self._arrays.read(self._kept[key])

    def mapped(self, array: Array) -> Array:
        with self._mapping, self._writing():
            kept = self._mapped.add(array) if self._mapped is not None else None
            if kept is None:
                self._mapped = MappedFile(self._folder, max(array.nbytes, _FILE_BYTES))
                kept = self._mapped.add(array)
            assert kept is not None
            return kept

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"the calibration data cannot be kept in {self._place}"
            raise OSError(f"{where}: {error}. Choose another cache_dir, or memory level 1") from error

    def drop(self, key: Key) -> None:
        self._arrays.remove(self._kept.pop(key))

    def close(self) -> None:
        self._mapped = None
        self._kept.clear()
        self._arrays.close()
