"""Arrays that come and go in a file without a name: it ends with the process, however that ends."""

from __future__ import annotations

import bisect
import os
import tempfile
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayFile", "KeptArray"]

_ALIGNMENT = 64  # bytes


@dataclass(frozen=True)
class KeptArray:
    """An array in the file.

    Attributes:
        start, size: bytes.
        dtype: object stands for strings.
    """

    start: int
    size: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class ArrayFile:
    """Arrays of any type of ONNX's tensors. Several threads may use it at a time.

    Args:
        folder: its file system holds the file.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by close)
        self._gaps: list[tuple[int, int]] = []  # (start, end), in order, none next to another
        self._end = 0
        self._changing = Lock()

    def add(self, array: NDArray[np.generic]) -> KeptArray:
        """Write an array.

        Raises:
            OSError: it cannot be written.
        """
        content = _packed(array) if array.dtype == object else np.ascontiguousarray(array)
        left = content.reshape(-1).view(np.uint8).data
        kept = KeptArray(self._room(len(left)), len(left), array.dtype, array.shape)
        try:
            position = kept.start
            while left:
                written = os.pwrite(self._file.fileno(), left, position)
                left, position = left[written:], position + written
        except BaseException:
            self.remove(kept)
            raise
        return kept

    def read(self, kept: KeptArray) -> NDArray[np.generic]:
        """A new array, C-contiguous.

        Raises:
            OSError: it cannot be read.
        """
        content = np.empty(kept.size, np.uint8)
        left, position = content.data, kept.start
        while left:
            count = os.preadv(self._file.fileno(), [left], position)
            if not count:
                raise OSError("a file of calibration data has become shorter")
            left, position = left[count:], position + count
        if kept.dtype == object:
            return _unpacked(content, kept.shape)
        array: NDArray[np.generic] = content.view(kept.dtype).reshape(kept.shape)
        return array

    def remove(self, kept: KeptArray) -> None:
        """Its room is free for others."""
        start, end = kept.start, kept.start + _rounded(kept.size)
        if start == end:
            return
        with self._changing:
            i = bisect.bisect(self._gaps, (start, end))
            if i < len(self._gaps) and self._gaps[i][0] == end:
                end = self._gaps.pop(i)[1]
            if i and self._gaps[i - 1][1] == start:
                i -= 1
                start = self._gaps.pop(i)[0]
            if end == self._end:
                self._end = start
                self._file.truncate(start)
            else:
                self._gaps.insert(i, (start, end))

    def close(self) -> None:
        """Forget all of them."""
        self._file.close()

    def _room(self, size: int) -> int:
        """Where so many bytes are free from now on taken: the first gap that is long enough, or the end."""
        size = _rounded(size)
        with self._changing:
            for i, (start, end) in enumerate(self._gaps):
                if end - start >= size:
                    self._gaps[i : i + 1] = [(start + size, end)] if end - start > size else []
                    return start
            start, self._end = self._end, self._end + size
            return start


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _packed(strings: NDArray[Any]) -> NDArray[np.uint8]:
    """The lengths of all strings in bytes, and behind them the strings."""
    encoded = [str(string).encode("utf-8", "surrogatepass") for string in strings.flat]
    lengths = np.array(list(map(len, encoded)), np.int64)
    return np.frombuffer(lengths.tobytes() + b"".join(encoded), np.uint8)


def _unpacked(content: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[Any]:
    strings = np.empty(shape, object)
    lengths = content[: 8 * strings.size].view(np.int64)
    end = np.cumsum(lengths) + 8 * strings.size
    whole = content.tobytes()
    for i, (length, stop) in enumerate(zip(lengths, end, strict=True)):
        strings.flat[i] = whole[stop - length : stop].decode("utf-8", "surrogatepass")
    return strings
