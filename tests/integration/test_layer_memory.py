"""What least squares is said to take of memory is what it takes."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from quark.onnx.solvers.layer_memory import least_squares_bytes

# Prints by how many bytes one layer makes a process grow.
MEASURE = """
import sys
import numpy as np
from quark.onnx import _core
inputs, outputs = map(int, sys.argv[1:])
random = np.random.default_rng(0)
x = random.standard_normal((300, inputs), np.float32)
weight = random.standard_normal((outputs, inputs), np.float32)
y, steps = x @ weight.T, np.rint(weight / 0.02).clip(-127, 127).astype(np.int32)
ones, pool = np.ones(outputs, np.float32), _core.ThreadPool(2)
before = _core.resident_memory()[0]
layer = _core.Layer(inputs, outputs, 300, 65536, holdout=5)
layer.feed(x, y, pool)
start = _core.QuantizedLayer(
    weight, steps, np.full((outputs, 1), 0.02, np.float32), np.zeros((outputs, 1), np.int32), qmin=-127, qmax=127,
    bias=0 * ones, bias_scale=1e-3 * ones, bias_qmin=-(2**31), bias_qmax=2**31 - 1,
)
layer.least_squares(start, pool, update_bias=True, free=False, damping=np.array([1e-2]), max_sweeps=1)
print(_core.resident_memory()[1] - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(("inputs", "outputs"), [(1200, 40), (800, 900)])
def test_what_is_told_is_what_a_layer_takes(inputs: int, outputs: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(inputs), str(outputs)], check=True, capture_output=True, text=True
    )
    layer = SimpleNamespace(groups=1, weight=SimpleNamespace(rows=np.empty((outputs, inputs), np.float32)))
    told = least_squares_bytes(layer, threads=2)
    assert 0.6 * told < int(run.stdout) < 1.15 * told
