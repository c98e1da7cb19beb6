"""The core under random arguments: it works or raises one of its own exceptions, and gives only integers of the grid.

QK_CORE_FUZZ=20000 tries that many seeds; built with sanitizers (CFLAGS) they see what happens in memory.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from quark.onnx import _core

SEEDS = int(os.environ.get("QK_CORE_FUZZ", "150"))
OWN = (ValueError, TypeError, MemoryError, OverflowError, IndexError)
POOLS = [_core.ThreadPool(1), _core.ThreadPool(3)]
ODD = [0, -1, 1, 2**7, 2**31 - 1, 2**31, 2**32, -(2**31), 2**62, 2**63 - 1, 2**63, -(2**63), 10**30]
REAL = [0.0, 1.0, -1.0, 1e-45, 1e-30, 1e18, 3e38, 1e300, float("inf"), float("-inf"), float("nan")]


class Draw:
    """Arguments of which about one in `rarity` makes no sense."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.rarity = int(self.random.choice([8, 60, 100_000]))

    def odd(self) -> bool:
        return bool(self.random.integers(self.rarity) == 0)

    def of(self, *choices: Any) -> Any:
        return choices[int(self.random.integers(len(choices)))]

    def number(self, low: int, high: int) -> Any:
        if self.odd():
            return self.of(*ODD, None, "1", 1.5)
        return int(self.random.integers(low, high + 1))

    def real(self, low: float, high: float) -> Any:
        return self.of(*REAL) if self.odd() else float(self.random.uniform(low, high))

    def pool(self) -> Any:
        return None if self.odd() else self.of(*POOLS)

    def array(self, shape: tuple[int, ...], dtype: Any = np.float32, low: int = -8, high: int = 8) -> Any:
        x = self.random.standard_normal(shape) if dtype == np.float32 else self.random.integers(low, high, shape)
        x = x.astype(dtype)
        if self.odd():
            x = self.of(x[..., ::2], x.astype(np.float64), x.T, x[:0], x.ravel(), None, x.tolist(), x.astype(">f4"))
        if self.odd() and isinstance(x, np.ndarray) and x.size and x.flags.writeable and x.dtype == np.float32:
            x.flat[int(self.random.integers(x.size))] = self.of(*REAL[:7], *REAL[8:])
        if self.odd() and isinstance(x, np.ndarray) and x.size and x.dtype == np.int32:
            x.flat[int(self.random.integers(x.size))] = self.of(2**31 - 1, -(2**31))
        return x

    def grid(self) -> tuple[Any, Any]:
        low, high = self.of((-8, 7), (0, 255), (-128, 127), (-32768, 32767))
        return (self.number(low, low), self.number(high, high)) if not self.odd() else (high, low)


class Case:
    """A layer's geometry with data for it."""

    def __init__(self, d: Draw) -> None:
        self.draw = d
        self.samples, spatial = d.of(1, 3, 12), d.of(0, 0, 1, 2)
        channels, self.groups, self.outputs = d.of(1, 2, 5, 33), 1, d.of(1, 3, 17)
        self.conv: Any = None
        kernel: tuple[int, ...] = ()
        if spatial == 0:
            shape, out = (self.samples, 4, channels), (self.samples, 4, self.outputs)
        else:
            self.groups = d.of(1, 2)
            kernel = tuple(int(k) for k in d.random.integers(1, 4, spatial))
            shape = (self.samples, channels * self.groups, *(int(n) for n in d.random.integers(3, 8, spatial)))
            transposed = d.of(False, False, True)
            stride = tuple(int(n) for n in d.random.integers(1, 4, spatial))
            sizes = [(n - 1) * s + k if transposed else (n - k) // s + 1
                     for n, k, s in zip(shape[2:], kernel, stride, strict=True)]  # fmt: skip
            out = (self.samples, self.outputs * self.groups, *sizes)
            parts: list[Any] = [list(kernel), list(stride), [1] * spatial, [0] * 2 * spatial, d.number(0, 0)]
            if transposed:
                parts += [[0] * spatial, None]
            if d.odd():
                parts[int(d.random.integers(len(parts)))] = d.of(None, [d.of(*ODD)] * spatial, [2**20] * spatial, 3, [])
            self.conv = tuple(parts)
        self.inputs = channels * int(np.prod(kernel))
        dtype, low, high = d.of((np.float32, 0, 0), (np.uint8, 0, 256), (np.int8, -128, 128))
        self.x = d.array(shape, dtype, low, high)
        self.y = d.array(out)
        self.rows = self.groups * self.outputs
        self.options = {
            "groups": d.number(self.groups, self.groups), "conv": self.conv, "holdout": d.number(0, 0) or d.of(0, 2, 5),
            "x_scale": d.real(0.01, 0.1), "x_zero_point": d.number(0, 128),
        }  # fmt: skip

    def start(self) -> tuple[dict[str, Any], list[Any]]:
        """Keywords and arrays of a QuantizedLayer."""
        d, shape = self.draw, (self.rows, self.inputs)
        low, high = d.grid()
        bias = d.of(None, d.array((self.rows,)))
        arrays = [d.array(shape), d.array(shape, np.int32, -8, 7), np.abs(d.array((self.rows,))) if not d.odd()
                  else d.array((self.rows,)), d.array((self.rows,), np.int32, 0, 2)]  # fmt: skip
        keywords = {
            "qmin": low, "qmax": high, "bias": bias, "bias_scale": d.of(None, d.array((self.rows,))),
            "bias_qmin": d.number(-(2**31), -(2**31)), "bias_qmax": d.number(2**31 - 1, 2**31 - 1),
        }  # fmt: skip
        return keywords, arrays


def check_weight(weight: np.ndarray, start: Any, keywords: dict[str, Any]) -> None:
    """New integers are on the grid; those that stay may have been elsewhere."""
    inside = (weight >= keywords["qmin"]) & (weight <= keywords["qmax"])
    assert np.all(inside | (weight == np.asarray(start).reshape(weight.shape)))


def use_layer(d: Draw) -> None:
    c = Case(d)
    layer = _core.Layer(d.number(c.inputs, c.inputs), d.number(c.outputs, c.outputs), d.number(c.samples, c.samples),
                        d.number(1, 1 << 20), seed=d.number(0, 9), target=True, **c.options)  # fmt: skip
    layer.extent(c.x)
    layer.feed(c.x, c.y, d.pool())
    if d.of(True, False):
        layer.feed(d.array(np.shape(c.x)), c.y, d.pool())
    keywords, arrays = c.start()
    layer.moments(d.pool(), d.of(True, False))
    layer.weight_scale(arrays[0], qmin=keywords["qmin"], qmax=keywords["qmax"], symmetric=d.of(True, False),
                       per_channel=d.of(True, False), bias_free=d.of(True, False),
                       scale_type=d.of("Float32", "PowerOf2", "Int16", "x" if d.odd() else "Int16"),
                       pool=d.pool())  # fmt: skip
    found = layer.least_squares(_core.QuantizedLayer(*arrays, **keywords), d.pool(), update_bias=d.of(True, False),
                                free=d.of(True, False), damping=np.array([0.1, d.real(0, 1)]),
                                max_sweeps=d.number(1, 5))  # fmt: skip
    check_weight(found["weight"], arrays[1], keywords)


def use_training(d: Draw) -> None:
    c = Case(d)
    stage = d.of(None, (d.of("clip", "gelu", "softmax", "silu"), 0.0, d.real(1, 6), None, d.number(1, 1), 0,
                        d.of(None, (d.real(0.01, 1), d.number(0, 9), 0, 255))))  # fmt: skip
    data = _core.TrainingData(d.number(c.inputs, c.inputs), d.number(c.outputs, c.outputs), stage=stage, **c.options)
    data.add(c.x, c.y, d.of(None, d.array(np.shape(c.x))))
    keywords, arrays = c.start()
    start = _core.QuantizedLayer(*arrays, **keywords)
    data.start_loss(start, d.pool())
    options = _core.GradientOptions(
        method=d.of("adaround", "adaquant", "x" if d.odd() else "adaround"), update_bias=d.of(True, False),
        batch_size=d.number(1, 3), step_positions=d.number(0, 600), iterations=min(d.number(1, 9), 50),
        learning_rate=d.real(0.001, 0.1), reg_param=d.real(0, 0.1), warm_start=d.real(0, 1),
        beta_start=d.real(10, 20), beta_end=d.real(1, 2), drop_ratio=d.of(1.0, d.real(0, 1)),
        window=d.number(0, 3), patience=d.number(0, 3), seed=d.number(0, 9),
    )  # fmt: skip
    offered = d.of(None, (d.array((c.rows, c.inputs), np.int32, -8, 7), d.of(None, d.array((c.rows,), np.int32, 0, 9))))
    found = data.train(start, options, d.pool(), offered=offered)
    check_weight(found["weight"], arrays[1], keywords)


def use_ranges(d: Draw) -> None:
    bins = d.of(2, 64, 2048, d.number(1, 9))
    ranges = _core.ValueRanges(min(d.number(0, 3), 9), bins)
    arrays = [d.array((d.of(0, 5, 5000),)) for _ in range(3)][: d.number(1, 3)]
    ranges.update(arrays)
    other = _core.ValueRanges(len(arrays), bins)
    other.add(ranges)
    low, high = d.grid()
    i = d.number(0, 2)
    ranges.histogram(i), ranges.min_max(i), ranges.percentile(i, d.real(50, 100))
    ranges.choose(i, d.of("MinMax", "Percentile", "MinMSE", "Entropy", "Distribution", "LayerwisePercentile"), qmin=low,
                  qmax=high, symmetric=d.of(True, False), scale_type="Float32", two_sided=d.of(True, False),
                  percentiles=[d.real(90, 100), 99.9], squared=d.of(True, False), levels=d.number(2, 128))  # fmt: skip


def use_functions(d: Draw) -> None:
    low, high = d.grid()
    _core.affine_from_range(d.real(-1, 0), d.real(0, 1), low, high, d.of(True, False), d.of("Float32", "Int16"))
    _core.fake_quant(d.array((3, 7)), d.real(0.01, 1), d.number(-9, 9), low, high)
    _core.weight_scale(d.array((3, 7)), qmin=low, qmax=high, symmetric=d.of(True, False), per_channel=True,
                       scale_type=d.of("Float32", "PowerOf2"), pool=d.pool())  # fmt: skip
    _core.is_better(_core.add_distances(0.0, d.array((4, 3)), d.array((4, 3)), d.number(4, 4)), d.real(0, 9))


def try_one(seed: int) -> bool:
    d = Draw(seed)
    try:
        d.of(use_layer, use_layer, use_training, use_training, use_ranges, use_functions)(d)
    except OWN:
        return False
    return True


def test_random_arguments() -> None:
    begin = int(os.environ.get("QK_CORE_FUZZ_FROM", "0"))
    done = sum(try_one(seed) for seed in range(begin, begin + SEEDS))
    assert done > SEEDS // 5, "most ends early: the arguments make no sense"
