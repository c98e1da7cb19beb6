"""What least squares is said to take of memory is what it takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from quark.onnx.solvers.layer_memory import least_squares_bytes, rows_bytes, rows_that_fit

# Prints by how many bytes one layer makes a process grow.
MEASURE = """
import sys
import numpy as np
from quark.onnx import _core
inputs, outputs, kept = map(int, sys.argv[1:])
random = np.random.default_rng(0)
x = random.standard_normal((300, inputs), np.float32)
weight = random.standard_normal((outputs, inputs), np.float32)
y, steps = x @ weight.T, np.rint(weight / 0.02).clip(-127, 127).astype(np.int32)
ones, pool = np.ones(outputs, np.float32), _core.ThreadPool(2)
before = _core.resident_memory()[0]
layer = _core.Layer(inputs, outputs, 300, 65536, holdout=5, kept=kept)
layer.feed(x, y, pool)
start = _core.QuantizedLayer(
    weight, steps, np.full((outputs, 1), 0.02, np.float32), np.zeros((outputs, 1), np.int32), qmin=-127, qmax=127,
    bias=0 * ones, bias_scale=1e-3 * ones, bias_qmin=-(2**31), bias_qmax=2**31 - 1,
)
layer.least_squares(start, pool, update_bias=True, free=False, damping=np.array([1e-2]), max_sweeps=1)
print(_core.resident_memory()[1] - before)
"""


def grown(inputs: int, outputs: int, kept: int) -> int:
    given = map(str, (inputs, outputs, kept))
    run = subprocess.run([sys.executable, "-c", MEASURE, *given], check=True, capture_output=True, text=True)
    return int(run.stdout)


def layer_of(inputs: int, outputs: int) -> SimpleNamespace:
    return SimpleNamespace(groups=1, weight=SimpleNamespace(rows=np.empty((outputs, inputs), np.float32)))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("inputs", "outputs"), [(1200, 40), (800, 900)])
def test_what_is_told_is_what_a_layer_takes(inputs: int, outputs: int) -> None:
    told = least_squares_bytes(layer_of(inputs, outputs), threads=2)
    assert 0.6 * told < grown(inputs, outputs, 0) < 1.15 * told


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("inputs", "outputs"), [(4000, 100), (20000, 70)])
def test_what_is_told_is_more_than_a_layer_takes_that_keeps_its_rows(inputs: int, outputs: int) -> None:
    told = rows_bytes(layer_of(inputs, outputs), 240, threads=2)
    assert grown(inputs, outputs, 240) < told < 400 << 20


def test_vgg_s_classifier_fits() -> None:
    """25088 x 4096, whose moments would take 30 GB."""
    free = 2 << 30
    layer = layer_of(25088, 4096)
    assert least_squares_bytes(layer, threads=2) > 10 * free
    assert rows_that_fit(layer, free, threads=2) >= 128
    assert rows_that_fit(layer, 1 << 20, threads=2) == 0
