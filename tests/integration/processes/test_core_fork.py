"""fork() in the middle of anything: the child has one thread, and must neither hang nor compute something else."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from quark.onnx import _core

SECONDS = 60  # far more than a child needs; one that hangs is killed
FORKS = int(os.environ.get("QK_FORKS", "60"))
X = np.random.default_rng(0).standard_normal((40, 9, 64), np.float32)
Y = np.random.default_rng(1).standard_normal((40, 9, 24), np.float32)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork() is needed")


def gram(pool: _core.ThreadPool) -> bytes:
    layer = _core.Layer(64, 24, 40, 1 << 20)
    layer.feed(X, Y, pool)
    return layer.moments(pool, False)[1].tobytes()


def ends_well(work: Callable[[], bool]) -> bool:
    """Whether a child in which `work` runs ends in time, and `work` is true there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of fork() with threads
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 1
        finally:
            os._exit(status)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def test_a_child_can_use_a_pool_and_drop_it() -> None:
    pools = [_core.ThreadPool(3)]
    expected = gram(pools[0])

    def use_and_drop() -> bool:
        same = gram(pools[0]) == expected
        pools.clear()  # frees it
        return same and gram(_core.ThreadPool(2)) == expected

    for _ in range(10):
        assert ends_well(use_and_drop)
    assert gram(pools[0]) == expected


@contextmanager
def busy(threads: int) -> Iterator[None]:
    """Threads that are in the core all the time."""
    stop = threading.Event()

    def work() -> None:
        pool = _core.ThreadPool(2)
        while not stop.is_set():
            gram(pool)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        stop.set()
        for worker in workers:
            worker.join()


def test_a_child_of_a_process_whose_other_threads_are_in_the_core() -> None:
    pool = _core.ThreadPool(2)
    expected = gram(pool)
    with busy(2):
        ended = [ends_well(lambda: gram(pool) == expected and gram(_core.ThreadPool(2)) == expected)
                 for _ in range(FORKS)]  # fmt: skip
    assert ended == [True] * FORKS


def test_a_child_is_told_that_another_thread_has_the_layer() -> None:
    """It is half changed in the child, for good."""
    layer = _core.Layer(64, 24, 40, 1 << 20, holdout=5)
    pool = _core.ThreadPool(1)
    layer.feed(X, Y, pool)
    weight = np.random.default_rng(2).standard_normal((24, 64), np.float32)
    start = _core.QuantizedLayer(
        weight, np.zeros((24, 64), np.int32), np.ones(24, np.float32), np.zeros(24, np.int32), qmin=-8, qmax=7,
        bias=None, bias_scale=None, bias_qmin=0, bias_qmax=0,
    )  # fmt: skip
    inside, go_on = threading.Event(), threading.Event()

    def is_refused() -> bool:
        try:
            layer.moments(pool, False)
        except RuntimeError as error:
            return "in use by another thread" in str(error)
        return False

    def solve() -> None:
        inside.set()
        while not go_on.is_set():
            layer.least_squares(start, pool, update_bias=False, free=True, damping=np.array([0.1]), max_sweeps=5)

    worker = threading.Thread(target=solve)
    worker.start()
    inside.wait()
    try:
        assert any(ends_well(is_refused) for _ in range(200))
    finally:
        go_on.set()
        worker.join()
