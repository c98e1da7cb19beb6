"""What one thread does with an object of the core while another one has it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from quark.onnx import _core

POOL = _core.ThreadPool(1)
INPUTS, OUTPUTS, N = 384, 16, 40
WEIGHT = np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS), np.float32)
BYTES = np.random.default_rng(1).integers(0, 256, (N, 25, INPUTS), np.uint8)
Y = np.random.default_rng(2).standard_normal((N, 25, OUTPUTS), np.float32)
FLOATS = np.random.default_rng(3).standard_normal((1, 25, INPUTS), np.float32)
IN_USE = "this Layer is in use by another thread: give each thread its own"


def filled(*, floats: bool = False) -> _core.Layer:
    layer = _core.Layer(INPUTS, OUTPUTS, N, 1 << 20, holdout=5, x_scale=0.02, x_zero_point=128)
    layer.feed(BYTES, Y, POOL)
    if floats:
        layer.feed(FLOATS, Y[:1], POOL)
    return layer


def solve(layer: _core.Layer) -> object:
    weight_q = np.clip(np.rint(WEIGHT / 0.05), -128, 127).astype(np.int32)
    start = _core.QuantizedLayer(
        WEIGHT, weight_q, np.full(OUTPUTS, 0.05, np.float32), np.zeros(OUTPUTS, np.int32), qmin=-128, qmax=127,
        bias=None, bias_scale=None, bias_qmin=0, bias_qmax=0,
    )  # fmt: skip
    solved = layer.least_squares(start, POOL, update_bias=False, free=True, damping=np.array([1.0]), max_sweeps=1)
    return solved["weight"].tobytes()


def scale_of(layer: _core.Layer) -> object:
    scale, _ = layer.weight_scale(
        WEIGHT, qmin=-128, qmax=127, symmetric=True, per_channel=True, bias_free=False, scale_type="Float32", pool=POOL
    )
    return scale.tobytes()


def moments(layer: _core.Layer) -> object:
    return [np.asarray(m).tobytes() for m in layer.moments(POOL, False)]


WORK: dict[str, Callable[[_core.Layer], object]] = {
    "moments": moments,
    "weight_scale": scale_of,
    "least_squares": solve,
}


def outcomes(*work: Callable[[], object], times: int) -> tuple[list[list[object]], list[str]]:
    """What each piece of work gave, done many times in a thread of its own, and the messages of RuntimeErrors."""
    results: list[list[object]] = [[] for _ in work]
    refused: list[str] = []
    start = threading.Barrier(len(work))

    def try_it(i: int) -> None:
        try:
            results[i].append(work[i]())
        except RuntimeError as error:
            refused.append(str(error))

    def run(i: int) -> None:
        start.wait()
        for _ in range(times):
            try_it(i)

    workers = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results, refused


@pytest.mark.parametrize("other", WORK)
@pytest.mark.parametrize("name", WORK)
def test_threads_that_share_a_layer_get_its_values_or_are_refused(name: str, other: str) -> None:
    layer, fresh = filled(), filled()
    names = name, other
    results, refused = outcomes(lambda: WORK[name](layer), lambda: WORK[other](layer), times=20)
    for which, found in zip(names, results, strict=True):
        expected = WORK[which](fresh)
        assert all(result == expected for result in found)
    assert sum(len(found) for found in results) + len(refused) == 40
    assert set(refused) <= {IN_USE}
    assert WORK[name](layer) == WORK[name](fresh), "it is free again"


@pytest.mark.parametrize("name", WORK)
def test_a_layer_is_not_fed_while_it_is_solved(name: str) -> None:
    """Floats after bytes replace the sums that the other thread reads."""
    expected = [WORK[name](filled(floats=floats)) for floats in (False, True)]
    for _ in range(15):
        layer = filled()
        fed = False

        def feed(layer: _core.Layer = layer) -> None:
            nonlocal fed
            while not fed:  # as soon as it is let in
                with suppress(RuntimeError):
                    layer.feed(FLOATS, Y[:1], POOL)
                    fed = True

        results, refused = outcomes(lambda layer=layer: WORK[name](layer), feed, times=1)
        assert fed
        assert len(results[0]) + len(refused) == 1
        assert all(result in expected for result in results[0])
        assert layer.moments(POOL, False)[0] == 33 * 25


def test_two_layers_join_each_other_or_one_is_refused() -> None:
    for _ in range(5):
        a, b = filled(), filled()
        results, refused = outcomes(lambda a=a, b=b: a.join(b, POOL), lambda a=a, b=b: b.join(a, POOL), times=1)
        rows = sorted(layer.moments(POOL, False)[0] // (32 * 25) for layer in (a, b))
        assert rows == {0: [1, 1], 1: [1, 2], 2: [2, 3]}[sum(map(len, results))]
        assert set(refused) <= {IN_USE}


def test_ranges_are_not_read_while_they_grow() -> None:
    ranges = _core.ValueRanges(1)
    x = np.random.default_rng(0).standard_normal(1 << 20, np.float32)
    ranges.update([x])
    expected = ranges.min_max(0)

    def use() -> object:
        ranges.update([x])
        return ranges.min_max(0)

    results, refused = outcomes(use, use, times=10)
    assert all(result == expected for found in results for result in found)
    assert set(refused) <= {"this ValueRanges is in use by another thread: give each thread its own"}


@pytest.mark.parametrize("which", ["x", "y", "x_float"])
def test_what_training_data_holds_is_not_resized(which: str) -> None:
    """NumPy would free the memory that the loops read."""
    arrays = {name: np.ones((4, 5, 3 if name != "y" else 2), np.float32) for name in ("x", "y", "x_float")}
    data = _core.TrainingData(3, 2)
    data.add(*arrays.values())
    with pytest.raises(ValueError, match="cannot resize"):
        arrays[which].resize((1,), refcheck=False)
    del data
    arrays[which].resize((1,), refcheck=False)
    assert arrays[which].size == 1


def test_training_data_lets_go_of_what_it_refused() -> None:
    data = _core.TrainingData(3, 2)
    x = np.ones((4, 5, 3), np.float32)
    with pytest.raises(ValueError, match="shape"):
        data.add(x, np.ones((4, 6, 2), np.float32))
    x.resize((1,), refcheck=False)
    assert x.size == 1


class Shortens:
    """A number that empties the list that it stands in when it is read."""

    def __init__(self, items: list[Any], value: float) -> None:
        self.items, self.value = items, value

    def __float__(self) -> float:
        self.items.clear()
        return float(self.value)

    def __index__(self) -> int:
        self.items.clear()
        return int(self.value)


def test_sequences_that_change_while_they_are_read() -> None:
    percentiles: list[Any] = []
    percentiles += [Shortens(percentiles, 99.0), *(float(i) for i in range(1, 90))]
    ranges = _core.ValueRanges(1)
    ranges.update([np.arange(100, dtype=np.float32)])
    ranges.choose(0, "LayerwisePercentile", qmin=0, qmax=255, symmetric=False, scale_type="Float32", two_sided=False,
                  percentiles=percentiles, squared=False, levels=2)  # fmt: skip
    kernel: list[Any] = []
    kernel += [Shortens(kernel, 3), 3]
    assert _core.Layer(9, 2, 1, 1, conv=(kernel, (1, 1), (1, 1), (1,) * 4, 0)) is not None
