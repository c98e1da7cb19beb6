"""Runs seeds in a process with limits, a line each: `python worker.py FIRST LAST [real]`."""

from __future__ import annotations

import logging
import resource
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

CPU_SECONDS = 60  # of one run
GIB = 4 << 30


def main() -> None:
    from fuzz.runs import run

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        sys.stdout.write(f"{seed} ")  # so that who reads knows which one ended the process
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process
        outcome = run(seed, real="real" in sys.argv)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(outcome + "\n")


if __name__ == "__main__":
    main()
