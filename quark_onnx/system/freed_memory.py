"""Memory that the C library keeps of freed tensors: used again, and given back to the system when it becomes much."""

from __future__ import annotations

from quark.onnx import _core

__all__ = ["FreedMemory", "return_much"]

_MOST_BYTES = 16 << 20  # less costs time, as the system clears each page that it hands out again
_SMALL = 320 << 20  # what any process may have: the libraries alone take half of it
_MUCH = 512 << 20  # what passes through a model with large tensors leave behind
_ROOM = 16 << 20  # below that, or the most that the process has had: up to there all is kept


def return_much() -> None:
    """Give it back where it is very much, however little the process has now."""
    if _core.unused_memory() > _MUCH:
        _core.return_memory()


class FreedMemory:
    """What is kept from now on."""

    def __init__(self) -> None:
        self._before = _core.unused_memory()

    def keep_little(self) -> None:
        """Give it back if it is much, and the process near the most it has had, or near `_SMALL` if that is more."""
        now, peak = _core.resident_memory()
        if now + _ROOM < max(peak, _SMALL):
            return
        unused = _core.unused_memory()
        if unused - self._before > _MOST_BYTES:
            _core.return_memory()
            unused = _core.unused_memory()
        self._before = min(self._before, unused)
