"""Time per phase and memory of the process."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from quark.onnx import _core

__all__ = ["PhaseClock", "peak_rss_mib"]


class PhaseClock:
    """Seconds spent in named phases, in the order in which they began, and the memory that the process has had.

    Attributes:
        seconds: by phase.
        memory: the most resident memory of the process from its start to the end of the phase, in MiB; empty where the
            system does not tell.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, float] = {}

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            _core.return_memory()  # what the phase alone needed
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
            peak = peak_rss_mib()
            if peak is not None:
                self.memory[name] = peak


def peak_rss_mib() -> float | None:
    """The most resident memory this process has had, in MiB; None where the system does not tell.

    It counts all of the process. The memory of a reader's data cannot be told apart honestly: a reader may hold all of
    it in arrays, map it from files, or make it item by item.
    """
    _, peak = _core.resident_memory()
    if peak:
        return peak / (1 << 20)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    # On Linux it would also count the process that started this one, before it became this one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20) if sys.platform == "darwin" else most / 1024
