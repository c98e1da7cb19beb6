"""How much memory a run may take: `MaxMemory`, or what the machine, its control groups and RLIMIT_AS leave."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from quark.onnx import _core
from quark.onnx.errors import OutOfMemoryError, QuarkError

__all__ = ["MemoryLimit", "unless_out_of_memory"]

_SHARE = 0.9  # of what the machine has left: other processes grow too
_UNLIMITED = 1 << 60  # control groups of the first version write no limit as a number of this size
_REFUSALS = (
    "bad_alloc",
    "Failed to allocate memory",
    "Available memory of",
    "Cannot allocate memory",
    "PosixThread",
    "can't start new thread",
)  # a thread needs memory for its stack


@dataclass(frozen=True)
class MemoryLimit:
    """The limit of one run.

    Attributes:
        most: bytes of resident memory that the process may have; None: no limit but the system's.
        root: the folder that holds proc and sys, in which the system tells of itself.
    """

    most: int | None = None
    root: Path = Path("/")

    def free(self) -> int:
        """Bytes that may still be taken at this moment; at least 0. `sys.maxsize` where nothing is known."""
        left = [
            _SHARE * available for available in (_available_on_machine(self.root), *_left_in_control_groups(self.root))
        ]
        left.append(_left_of_address_space(self.root))
        if self.most is not None:
            left.append(self.most - _core.resident_memory()[0])
        return max(0, int(min(left)))


def unless_out_of_memory(error: BaseException, otherwise: QuarkError) -> QuarkError:
    """The error to raise for one of onnxruntime's: `otherwise`, or OutOfMemoryError if it lacked memory or a thread."""
    text = str(error)
    if isinstance(error, MemoryError) or any(refusal in text for refusal in _REFUSALS):
        return OutOfMemoryError(
            f"memory or threads are short: {otherwise}. Give smaller items, or fewer threads (NumThreads)"
        )
    return otherwise


def _available_on_machine(system: Path) -> float:
    for line in _lines(system / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return sys.maxsize


def _left_in_control_groups(system: Path) -> list[int]:
    """The limit of each control group that this process is in, less what the group uses and cannot drop."""
    left = []
    for line in _lines(system / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents[: len(group.parts) - len(root.parts)]):  # all above it limit it too
            limit, used, droppable = (_number(folder / names[0]), _number(folder / names[1]), 0)
            if limit is None or used is None or limit >= _UNLIMITED:
                continue
            for stat in _lines(folder / "memory.stat"):
                if stat.startswith(names[2] + " "):
                    droppable = int(stat.split()[1])
            left.append(limit - used + droppable)
    return left


def _left_of_address_space(system: Path) -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return sys.maxsize
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _lines(system / "proc/self/statm")
    if limit == resource.RLIM_INFINITY or not pages:
        return sys.maxsize
    return limit - int(pages[0].split()[0]) * resource.getpagesize()


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
