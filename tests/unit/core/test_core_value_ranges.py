"""Value ranges against NumPy on all values at once, however the data is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from reference.value_range import bin_width, histogram_percentile, signed_histogram

from quark.onnx import _core

FINITE = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
VALUES = arrays(np.float32, st.integers(1, 200), elements=FINITE)
PERCENTILES = [1.0, 50.0, 90.0, 99.9, 99.999, 100.0]


def ranges_of(batches: list[np.ndarray], bins: int = 64) -> _core.ValueRanges:
    found = _core.ValueRanges(1, bins)
    for batch in batches:
        found.update([batch])
    return found


def assert_same(found: _core.ValueRanges, wanted: _core.ValueRanges) -> None:
    assert found.min_max(0) == wanted.min_max(0)
    assert [found.percentile(0, p) for p in PERCENTILES] == [wanted.percentile(0, p) for p in PERCENTILES]
    assert found.histogram(0)[0] == wanted.histogram(0)[0]
    np.testing.assert_array_equal(found.histogram(0)[1], wanted.histogram(0)[1])


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_minimum_maximum_and_percentiles(x: np.ndarray):
    found = ranges_of([x])
    assert found.min_max(0) == (x.min(), x.max())
    if not x.any():
        return
    for percentile in PERCENTILES:
        t = found.percentile(0, percentile)
        assert t == histogram_percentile(x, percentile, 64)
        enough = percentile / 100 * x.size
        assert (np.abs(x) <= t).sum() >= enough
        assert (np.abs(x) < t - bin_width(x, 64)).sum() < enough  # a bin less would be too few


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_the_histogram_is_numpys(x: np.ndarray):
    if not x.any():
        return
    width, counts = ranges_of([x]).histogram(0)
    expected_width, expected = signed_histogram(x, 64)
    assert width == expected_width
    assert counts.dtype == np.uint64
    np.testing.assert_array_equal(counts, expected)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.lists(st.integers(0, 200), max_size=4))
def test_the_cut_into_batches_does_not_matter(x: np.ndarray, cuts: list[int]):
    batches = np.split(x, sorted(min(c, len(x)) for c in cuts))
    assert_same(ranges_of(batches), ranges_of([x]))
    first, *others = (ranges_of([batch]) for batch in batches)
    for ranges in others:
        first.add(ranges)
    assert_same(first, ranges_of([x]))


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_a_first_batch_of_next_to_nothing_does_not_matter(value: float):
    first, x = np.full(10, value, np.float32), np.linspace(0, 0.01, 90, dtype=np.float32)
    found, whole = ranges_of([first, x]), ranges_of([np.concatenate([first, x])])
    assert found.percentile(0, 90.0) == whole.percentile(0, 90.0)


def test_many_tensors_large_and_small():
    rng = np.random.default_rng(0)
    tensors = [
        np.float32(gain) * rng.standard_normal(shape, np.float32)
        for gain, shape in ((1, (200_000,)), (1e-20, (3, 5)), (1e20, (0,)), (7, (2, 50_000)))
    ]
    ranges = _core.ValueRanges(len(tensors))
    for _ in range(2):
        ranges.update(tensors)
    for i, x in enumerate(tensors):
        limits, percentile = ranges.min_max(i), ranges.percentile(i, 99.0)
        if x.size == 0:
            assert limits == (0, 0)
            continue
        assert limits == (x.min(), x.max())
        exact = np.percentile(np.abs(x), 99.0, method="inverted_cdf")
        assert exact <= percentile <= exact + bin_width(x, 2048)


def test_only_ranges_of_the_same_tensors_add_up():
    one = _core.ValueRanges(1, 64)
    for other in (one, _core.ValueRanges(2, 64), _core.ValueRanges(1, 32)):
        with pytest.raises(ValueError, match="as many tensors and bins"):
            one.add(other)
    with pytest.raises(TypeError, match="not int"):
        one.add(1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 31, 32, 40_000])
def test_what_is_not_finite_is_refused(bad: float, at: int):
    x = np.zeros(50_000, np.float32)
    x[at] = bad
    with pytest.raises(ValueError, match="tensor 1 contains NaN or Inf"):
        _core.ValueRanges(2).update([np.zeros(3, np.float32), x])
