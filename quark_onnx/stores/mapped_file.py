"""Many arrays in one mapped file: a file of its own for each would be more than a process may have open."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "MappedFile"]

Array = TypeVar("Array", bound=NDArray[np.generic])
_ALIGNMENT = 64  # bytes


class MappedFile:
    """A file without a name that arrays are added to, one behind the other. It goes with the last of them.

    Args:
        folder: its file system holds the file.
        size: bytes that fit; where the file system can, only what is added takes space.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], size: int) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the object)
        self._file.truncate(size)
        self._memory = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ)
        self._size, self._end = size, 0

    def add(self, array: Array) -> Array | None:
        """The array, C-contiguous and read-only, to be read from the file; None where it does not fit any more.

        Raises:
            OSError: it cannot be written.
        """
        start = self._end
        if start + array.nbytes > self._size:
            return None
        self._file.seek(start)
        array.tofile(self._file)  # not through the mapping, where a full disk would end the process
        self._end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return cast(Array, np.ndarray(array.shape, array.dtype, self._memory, start))
