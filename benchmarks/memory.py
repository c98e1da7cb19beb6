"""Resident memory of this process while one call runs, from Linux's /proc.

Standard library only: the peer's interpreter imports it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MIB = 1024  # /proc counts in KiB


@dataclass
class ResidentMemory:
    """MiB. before: just before the call. earlier_peak: highest until then. peak: highest during the call."""

    before: float
    earlier_peak: float
    peak: float = 0.0

    def figures(self) -> dict[str, float]:
        """The figures of the tables: of the whole process, of the call alone, and what the call added."""
        return {
            "peak_rss_mib": round(max(self.earlier_peak, self.peak), 1),
            "call_peak_mib": round(self.peak, 1),
            "growth_mib": round(self.peak - self.before, 1),
        }


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / _MIB
    raise RuntimeError(f"/proc/self/status has no {field}: memory can be measured on Linux only")


@contextmanager
def resident_memory() -> Iterator[ResidentMemory]:
    """Measure the block: the kernel's high-water mark is reset before it and read after it.

    VmHWM rather than ru_maxrss: the latter also counts the parent's memory at the time of the fork.
    """
    memory = ResidentMemory(before=_status("VmRSS"), earlier_peak=_status("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    yield memory
    memory.peak = _status("VmHWM")
