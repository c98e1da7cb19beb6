"""Run a program in a fresh process, take the JSON that it prints, and notice who else used the machine."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NOISY = 0.05  # share of the machine that other processes may take before a timing is called noisy


def run(command: Sequence[str], *, cwd: Path, log: Path | None = None) -> dict[str, Any]:
    """Run command in cwd and merge the lines `TAG {json}` of its output; of equal keys the earlier counts.

    All it prints, standard error too, is kept in the file log, if one is given.

    Returns the merged objects plus `others_cpu`, the share (0-1) of all cores that other processes used.

    Raises:
        RuntimeError: the program failed, or printed no such line; the message ends with what it printed last.
    """
    busy, own, start = _busy_seconds(), _children_seconds(), time.perf_counter()
    here = str(Path(__file__).resolve().parent)  # other environments' programs import from it too
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": here}
    done = subprocess.run(
        command, cwd=cwd, env=env, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    elapsed = time.perf_counter() - start
    if log is not None:
        log.write_text(done.stdout)
    others = (_busy_seconds() - busy) - (_children_seconds() - own)
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        tag, _, rest = line.partition(" ")
        if tag.isalpha() and tag.isupper() and rest.startswith("{"):
            found = json.loads(rest) | found
    if done.returncode or not found:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise RuntimeError(f"{' '.join(command)}: exit status {done.returncode}, no result\n{tail}")
    found["others_cpu"] = round(max(0.0, others / (elapsed * (os.cpu_count() or 1))), 3)
    return found


def noisy(result: Mapping[str, Any]) -> bool:
    """Whether the timings of a result of run() are provisional: others used the machine meanwhile."""
    return bool(result["others_cpu"] > _NOISY)


def _busy_seconds() -> float:
    """CPU seconds that the whole machine has spent on anything but waiting, steal included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
