"""The least CPU time that quantizing and finetuning a network can take, with the kernels that are there.

For a layer with K inputs, O outputs and N rows, of which a part is fitted, per group:

* moments: N rows of K^2 / 2 multiply-adds of bytes and 2 K O flops;
* solving, with m = min(K, fitted rows): K m^2 / 3 flops of a Cholesky factor, and 7 O K m of rounding, one sweep, one
  residual and a judgement;
* the weight's scale: ten factors on at most 1024 rows, 2 O K flops a row.

Beside the layers 3.6 passes of the float model over the samples, two of the float model and somewhat dearer ones of the
Q/DQ model, and half a second for all else. Rates are measured on one thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ["LayerSize", "Rates", "limit_seconds", "measured_rates"]

_PASSES = 3.6
_ELSE = 0.5  # seconds
_FACTORS, _SCALE_ROWS = 10, 1024
_TIMES = 3  # every kernel is timed so often; the best counts


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """K inputs of a group, outputs of all groups, rows, and those of them that are fitted."""

    inputs: int
    outputs: int
    groups: int
    rows: int
    fitted: int


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Per CPU second: flops of a float32 product and of a float32 Cholesky factor, multiply-adds of bytes."""

    product: float
    factor: float
    bytes: float


def limit_seconds(layers: Iterable[LayerSize], samples: int, float_pass: float, rates: Rates) -> float:
    """CPU seconds.

    Args:
        float_pass: CPU seconds of one sample through the float model.
    """
    return sum(_of_layer(layer, rates) for layer in layers) + _PASSES * samples * float_pass + _ELSE


def _of_layer(layer: LayerSize, rates: Rates) -> float:
    k, weights = layer.inputs, layer.outputs * layer.inputs  # of all groups
    m = min(k, layer.fitted)
    moments = layer.rows * (layer.groups * k**2 / 2 / rates.bytes + 2 * weights / rates.product)
    solving = layer.groups * k * m**2 / 3 / rates.factor + 7 * weights * m / rates.product
    scale = _FACTORS * 2 * weights * min(layer.rows, _SCALE_ROWS, k) / rates.product
    return moments + solving + scale


def measured_rates() -> Rates:
    """Measure this machine. To be called where BLAS has one thread."""
    from quark.onnx import _core

    rng = np.random.default_rng(0)
    square = rng.standard_normal((2048, 2048), np.float32)
    definite = square @ square.T + 2048 * np.eye(2048, dtype=np.float32)
    rows, inputs = 32768, 1152
    values, targets = rng.integers(0, 255, (rows, inputs), np.uint8), np.zeros((rows, 1), np.float32)
    pool = _core.ThreadPool(1)

    def moments() -> None:
        layer = _core.Layer(inputs, 1, rows, rows, holdout=5, x_scale=1.0, x_zero_point=0)
        layer.feed(values, targets, pool)

    return Rates(
        product=2 * 2048**3 / _seconds(lambda: square @ square),
        factor=2048**3 / 3 / _seconds(lambda: np.linalg.cholesky(definite)),
        bytes=rows * inputs**2 / 2 / _seconds(moments),
    )


def _seconds(run: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    return min(once() for _ in range(_TIMES))
