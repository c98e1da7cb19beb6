"""Memory that is short: the core raises MemoryError or does with less; OpenBLAS never ends the process or asks on."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, time
import numpy as np
from quark.onnx import _core

time.sleep(0.5)  # OpenBLAS 0.3.27 starts threads when it is loaded; each takes its buffer a moment later
threads, extra = int(sys.argv[1]), int(sys.argv[2]) << 20
x, y = np.ones((40, 9, 300), np.float32), np.ones((40, 9, 256), np.float32)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + extra, resource.RLIM_INFINITY))
try:
    pool = _core.ThreadPool(threads)
    layer = _core.Layer(300, 256, 40, 1 << 20)
    layer.feed(x, y, pool)
    layer.moments(pool, False)
    print("done")
except MemoryError:
    print("MemoryError")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.parametrize("threads", [1, 4])
def test_openblas_neither_ends_the_process_nor_hangs(threads: int) -> None:
    seen = set()
    for extra in (0, 30, 50, 70, 80, 90, 100, 120, 600):  # MiB
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(threads), str(extra)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, (extra, done.returncode, done.stderr)
        seen.add(done.stdout.strip())
    assert seen == {"done", "MemoryError"}
