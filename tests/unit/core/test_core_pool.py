"""ThreadPool.cancel ends the solvers that work with the pool, in whatever thread they do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from reference.training import Options
from reference.training_cases import CASES, train

from quark.onnx import ConfigError, Int8Spec, QConfig, QLayerConfig, UInt8Spec, _core

ENDLESS = Options(batch_size=4, iterations=5_000_000, learning_rate=0.01)


def training(pool: _core.ThreadPool, options: Options = ENDLESS) -> dict[str, Any]:
    case = CASES["gemm"]
    return train(case.core(), case.layer, options, adaround=True, pool=pool)


def least_squares(pool: _core.ThreadPool) -> object:
    layer = _core.Layer(3, 2, 40, 1000, holdout=5)
    random = np.random.default_rng(0)
    layer.feed(random.standard_normal((40, 3), np.float32), random.standard_normal((40, 2), np.float32), pool)
    ones = np.ones(2, np.float32)
    start = _core.QuantizedLayer(
        np.ones((2, 3), np.float32), np.ones((2, 3), np.int32), ones, np.zeros(2, np.int32), qmin=-8, qmax=7, bias=None,
        bias_scale=None, bias_qmin=0, bias_qmax=0,
    )  # fmt: skip
    return layer.least_squares(start, pool, update_bias=False, free=True, damping=np.array([0.1]), max_sweeps=2)


@pytest.mark.parametrize("solve", [training, least_squares])
def test_a_cancelled_pool_solves_nothing(solve: Callable[[_core.ThreadPool], object]) -> None:
    pool = _core.ThreadPool(1)
    pool.cancel()
    with pytest.raises(KeyboardInterrupt):
        solve(pool)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_runs_in_another_thread_ends(threads: int) -> None:
    pool, other = _core.ThreadPool(threads), _core.ThreadPool(1)
    with ThreadPoolExecutor(1) as executor:
        begun = threading.Event()

        def work() -> object:
            begun.set()
            return training(pool)

        future = executor.submit(work)
        begun.wait()
        pool.cancel()
        with pytest.raises(KeyboardInterrupt):
            future.result()
    assert training(other, replace(ENDLESS, iterations=3))["iterations"] == 3, "other pools go on"


@pytest.mark.parametrize("threads", [0, -1, 1025, 100_000])
def test_as_many_threads_as_can_be_of_use(threads: int) -> None:
    with pytest.raises(ValueError, match=f"threads: 1 to 1024 are needed, not {threads}"):
        _core.ThreadPool(threads)
    with pytest.raises(ConfigError, match=r"NumThreads.*an int from 1 to 1024"):
        QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), extra_options={"NumThreads": threads})


@pytest.mark.parametrize(("cap", "known"), [("", True), ("avx2", True), ("AVX2", False), ("sse2", False)])
def test_an_instruction_set_that_does_not_exist_is_refused(cap: str, known: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from quark.onnx import _core"],
        env={**os.environ, "QK_MAX_ISA": cap},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == known
    message = f"ImportError: the environment variable QK_MAX_ISA is '{cap}': use scalar, avx2, avx512 or avx512vnni"
    assert known or message in done.stderr
