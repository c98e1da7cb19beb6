"""Mutated models through both entry points: a result or an error of ours; no crash, no hang, no memory without end.

QK_FUZZ_MODELS says how many, 1000 by default; QK_FUZZ_FIRST_SEED with which seed they begin. With more than the
default, real models are among them where there are any. Every line of a failure begins with its seed: repeat it by
`python tests/fuzz/worker.py SEED SEED+1 [real]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

WORKER = Path(__file__).parents[2] / "fuzz" / "worker.py"
USUAL = 1000
RECYCLED = 250  # runs of one process
SECONDS = 1800  # of a process that sleeps: its limit is of processor time


def outcomes(first: int, last: int, *, real: bool) -> dict[int, str]:
    """The outcomes by seed; where a run ends its process, a new one goes on behind it."""
    found: dict[int, str] = {}
    while first < last:
        command = [sys.executable, os.fspath(WORKER), str(first), str(min(last, first + RECYCLED))]
        try:
            done = subprocess.run(
                [*command, *(["real"] if real else [])], capture_output=True, text=True,
                timeout=SECONDS, check=False, errors="replace",
            )  # fmt: skip
            text, end = done.stdout, f"crash: {done.returncode} {done.stderr[-300:]!r}"
        except subprocess.TimeoutExpired as error:
            text, end = (error.stdout or b"").decode(errors="replace"), "hang"
        lines = [line.split(" ", 1) for line in text.splitlines()]
        finished = {int(line[0]): line[1] for line in lines if len(line) == 2 and line[0].isdigit() and line[1]}
        found |= finished
        first = max(finished, default=first - 1) + 1
        if first < last and first % RECYCLED and first not in found and len(finished) < RECYCLED:
            found[first] = end
            first += 1
    return found


def test_mutated_models_give_results_or_errors_of_ours() -> None:
    count, first = int(os.environ.get("QK_FUZZ_MODELS", USUAL)), int(os.environ.get("QK_FUZZ_FIRST_SEED", "0"))
    found = outcomes(first, first + count, real=count > USUAL)
    counts = Counter(outcome.split(":")[0] for outcome in found.values())
    assert len(found) == count
    wrong = [
        f"{seed} {outcome}"
        for seed, outcome in found.items()
        if outcome.split(":")[0] in ("foreign", "crash", "hang", "memory", "net")
    ]
    assert not wrong, "\n".join(wrong)
    assert counts["delivered"] > count // 20
    assert counts["own"] > count // 4
