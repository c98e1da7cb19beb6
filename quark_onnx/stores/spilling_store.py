"""Where the walk keeps tensors at memory levels 0 and 1: in memory as far as there is some, and then in files."""

from __future__ import annotations

import os
import weakref
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from quark.onnx.stores.batch_store import BatchStore, FileStore, Key, MemoryStore
from quark.onnx.stores.mapped_file import Array

__all__ = ["SpillingStore"]


class SpillingStore(BatchStore):
    """Arrays are kept in memory; one that would exceed the limit goes to a file, as all do at memory level 2.

    Args:
        most_bytes: held in memory at a time.
        cache_dir: folder of the files; None: the system's temporary folder.

    Attributes:
        spilled: bytes that went to files.
    """

    def __init__(self, most_bytes: int, cache_dir: str | os.PathLike[str] | None) -> None:
        self._most_bytes, self._cache_dir = most_bytes, cache_dir
        self._memory, self._files = MemoryStore(), None
        self._sizes: dict[Key, int] = {}  # of what is in memory
        self._held = self.spilled = 0
        self._lock = Lock()

    _files: FileStore | None

    def put(self, key: Key, array: NDArray[np.generic]) -> None:
        self._forget(key)
        if self._takes(array.nbytes):
            self._sizes[key] = array.nbytes
            self._memory.put(key, array)
        else:
            self._opened().put(key, array)

    def get(self, key: Key) -> NDArray[np.generic]:
        return self._memory.get(key) if key in self._sizes else self._opened().get(key)

    def mapped(self, array: Array) -> Array:
        if not self._takes(array.nbytes):
            return self._opened().mapped(array)
        weakref.finalize(array, self._give_back, array.nbytes)
        return array

    def drop(self, key: Key) -> None:
        if not self._forget(key):
            self._opened().drop(key)

    def close(self) -> None:
        self._memory.close()
        self._sizes.clear()
        if self._files is not None:
            self._files.close()

    def _takes(self, size: int) -> bool:
        """Whether so many bytes more stay in memory; they are counted then."""
        with self._lock:
            fits = self._held + size <= self._most_bytes
            if fits:
                self._held += size
            else:
                self.spilled += size
            return fits

    def _give_back(self, size: int) -> None:
        with self._lock:
            self._held -= size

    def _forget(self, key: Key) -> bool:
        """Let go of what is in memory under a key, if anything is."""
        size = self._sizes.pop(key, None)
        if size is None:
            return False
        self._memory.drop(key)
        self._give_back(size)
        return True

    def _opened(self) -> FileStore:
        with self._lock:
            if self._files is None:
                self._files = FileStore(self._cache_dir)
            return self._files
