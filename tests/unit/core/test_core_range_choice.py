"""CalibMethod of an activation: the core's choice against searches and sums in NumPy, and onnxruntime's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnxruntime.quantization.calibrate import HistogramCollector
from reference.range_choice import Grid, entropy_threshold, least_squared_error, two_sided_percentile
from reference.value_range import histogram_percentile, signed_histogram

from quark.onnx import _core

BINS = 4096
GRIDS = [
    Grid(0, 255, symmetric=False),
    Grid(-127, 127, symmetric=True),
    Grid(0, 15, symmetric=False),
    Grid(-7, 7, symmetric=True),
    Grid(-127, 127, symmetric=True, scale_type="PowerOf2"),
    Grid(-128, 127, symmetric=False, scale_type="PowerOf2"),
    Grid(-127, 127, symmetric=True, scale_type="Int16"),
]
VALUES = arrays(np.float32, st.integers(1, 300), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False))


def distributions(seed: int = 0, size: int = 20_000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(size)
    return {
        name: x.astype(np.float32)
        for name, x in {
            "normal": 3 * normal,
            "heavy": rng.laplace(size=size) ** 3 / 20 + normal,
            "rectified": np.maximum(normal, 0),
            "negative": -np.abs(normal) - 0.5,
            "skewed": np.exp(normal) - 0.5,
            "clipped": np.clip(2 * normal, 0, 6),
            "one outlier": np.append(normal, 60.0),
        }.items()
    }


def ranges_of(x: np.ndarray, bins: int = BINS) -> _core.ValueRanges:
    ranges = _core.ValueRanges(1, bins)
    ranges.update([x])
    return ranges


def choose(ranges: _core.ValueRanges, method: str, grid: Grid = GRIDS[0], **options: Any) -> tuple[float, float]:
    defaults: dict[str, Any] = {"two_sided": False, "percentiles": (99.9,), "squared": False, "levels": 128}
    return ranges.choose(
        0, method, qmin=grid.qmin, qmax=grid.qmax, symmetric=grid.symmetric, scale_type=grid.scale_type,
        **{**defaults, **options},
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_minimum_maximum_and_their_symmetric_range(x: np.ndarray):
    ranges = ranges_of(x, 64)
    assert choose(ranges, "MinMax") == (x.min(), x.max())
    largest = np.abs(x).max()
    assert choose(ranges, "Distribution") == (-largest, largest)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(1, 100))
def test_percentiles(x: np.ndarray, percentile: float):
    if not x.any():
        return
    ranges = ranges_of(x, 64)
    t = histogram_percentile(x, percentile, 64)
    assert choose(ranges, "Percentile", percentiles=[percentile]) == (max(x.min(), -t), min(x.max(), t))
    low, high = two_sided_percentile(*signed_histogram(x, 64), percentile)
    found = choose(ranges, "Percentile", percentiles=[percentile], two_sided=True)
    assert found == (max(x.min(), low), min(x.max(), high))


@pytest.mark.parametrize("name", distributions())
def test_a_two_sided_percentile_is_near_numpys(name: str):
    x = distributions()[name]
    width, _ = ranges_of(x).histogram(0)
    low, high = choose(ranges_of(x), "Percentile", percentiles=[99.0], two_sided=True)
    exact = np.percentile(x, [0.5, 99.5], method="inverted_cdf")
    np.testing.assert_allclose([low, high], exact, rtol=0, atol=1.01 * width)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", distributions())
def test_min_mse_is_as_good_as_brute_force(name: str, grid: Grid):
    """On the values themselves, which the core knows by the bin only."""
    x = np.ascontiguousarray(distributions()[name][:: 1 if grid.symmetric else 10])
    low, high = choose(ranges_of(x), "MinMSE", grid)
    assert x.min() <= low <= high <= x.max()
    steps = 4 if not grid.symmetric else 1
    assert grid.error(x, low, high, squared=True) <= 1.02 * least_squared_error(x, grid, steps)


def test_min_mse_clips_an_outlier_and_keeps_what_has_none():
    _, high = choose(ranges_of(distributions()["one outlier"]), "MinMSE", Grid(-7, 7, symmetric=True))
    assert high < 6
    uniform = np.linspace(-1, 1, 10_000, dtype=np.float32)
    assert choose(ranges_of(uniform), "MinMSE", Grid(-7, 7, symmetric=True))[1] > 0.9


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("name", distributions())
def test_layerwise_percentile_takes_the_best_candidate(name: str, grid: Grid, two_sided: bool, squared: bool):
    x, candidates = distributions()[name], (90.0, 99.0, 99.99, 100.0)
    ranges = ranges_of(x)
    options = {"squared": squared, "two_sided": two_sided}
    found = choose(ranges, "LayerwisePercentile", grid, percentiles=candidates, **options)
    alone = [choose(ranges, "Percentile", grid, percentiles=[p], **options) for p in candidates]
    assert found in alone
    least = min(grid.error(x, *limits, squared=squared) for limits in alone)
    assert grid.error(x, *found, squared=squared) <= 1.01 * least


@pytest.mark.parametrize("levels", [16, 128, 512])
@pytest.mark.parametrize("name", distributions())
def test_entropy_takes_the_least_divergence(name: str, levels: int):
    x = distributions()[name]
    ranges = ranges_of(x)
    t, found = entropy_threshold(*ranges.histogram(0), float(np.abs(x).max()), levels)
    assert choose(ranges, "Entropy", levels=levels) == (max(x.min(), -np.float32(t)), min(x.max(), np.float32(t)))
    assert np.isfinite(min(found))


@pytest.mark.parametrize("name", ["normal", "heavy", "one outlier"])
def test_entropy_is_near_onnxruntimes_for_the_same_histogram(name: str):
    """onnxruntime's has a window for every bin and rounds levels to integers: another minimum of almost equal value."""
    x = distributions(size=5_000)[name]
    ranges = ranges_of(x, 512)
    width, counts = ranges.histogram(0)
    edges = (width * np.arange(-512, 513)).astype(np.float32)
    collector = HistogramCollector("entropy", False, 1024, 128, 99.9, "same")
    low, high = collector.get_entropy_threshold((counts.astype(np.int64), edges, x.min(), x.max()), 128)
    ours = choose(ranges, "Entropy")
    assert 0.5 <= max(-ours[0], ours[1]) / max(-low, high) <= 2


def test_zeros_do_not_count_for_entropy():
    """A Relu lets half of the values be zero, which every range holds exactly."""
    x = distributions()["rectified"]
    assert choose(ranges_of(x), "Entropy")[1] == choose(ranges_of(np.append(x, np.zeros_like(x))), "Entropy")[1]


METHODS = ["MinMax", "Percentile", "MinMSE", "Entropy", "Distribution", "LayerwisePercentile"]


@settings(max_examples=40, deadline=None)
@given(VALUES, st.lists(st.integers(0, 300), max_size=3), st.sampled_from(GRIDS), st.booleans())
def test_neither_batches_nor_threads_matter(x: np.ndarray, cuts: list[int], grid: Grid, two_sided: bool):
    whole, pieces = ranges_of(x, 64), _core.ValueRanges(1, 64)
    for piece in np.split(x, sorted(min(c, len(x)) for c in cuts)):
        pieces.update([piece])
    for method in METHODS:
        options = {"two_sided": two_sided, "percentiles": (50.0, 99.0), "levels": 16}
        low, high = choose(whole, method, grid, **options)
        assert choose(pieces, method, grid, **options) == (low, high)
        assert low <= high
        if method != "Distribution":
            assert x.min() <= low <= high <= x.max() or not x.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("x", [np.zeros(0, np.float32), np.zeros(5, np.float32)], ids=["nothing", "zeros"])
def test_nothing_and_zeros(method: str, x: np.ndarray):
    assert choose(ranges_of(x), method) == (0, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [1e-38, 1e-30, 3.0, -2.5, 3e37])
def test_one_value_again_and_again(method: str, value: float):
    low, high = choose(ranges_of(np.full(9, value, np.float32)), method)
    assert low <= np.float32(value) <= high


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("method", METHODS)
def test_values_on_one_side_of_zero_have_a_range(method: str, grid: Grid, sign: int) -> None:
    """Near the end of a power of two the best scale is that of a cut nearer to 0 than any value."""
    for nearest in np.linspace(0.5, 2, 100):
        x = (sign * np.linspace(nearest, 1.02 * nearest, 50)).astype(np.float32)
        low, high = choose(ranges_of(x), method, grid)
        assert low <= high
