"""The values of an activation as a small histogram, to be shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quark.onnx import _core

__all__ = ["ValueHistogram", "value_histogram"]

_BINS = 64


@dataclass(frozen=True)
class ValueHistogram:
    """What calibration has seen of a tensor.

    Attributes:
        low, high: the smallest and the largest value.
        clipped: share of the values outside of the chosen range, 0 to 1, to the width of a bin of calibration.
        counts: of values in bins of equal width from `low` to `high`; one bin where these are the same.
    """

    low: float
    high: float
    clipped: float
    counts: tuple[int, ...]


def value_histogram(ranges: _core.ValueRanges, index: int, chosen: tuple[float, float]) -> ValueHistogram:
    """The histogram of a tensor that has seen values.

    Args:
        chosen: (lowest, highest) of the range that was chosen for it.
    """
    low, high = ranges.min_max(index)
    width, counts = ranges.histogram(index)
    total = int(counts.sum())
    filled = np.flatnonzero(counts)
    if high <= low or not len(filled):
        return ValueHistogram(low, high, 0.0, (total,))
    edges = (np.arange(len(counts) + 1) - len(counts) // 2) * width
    rounding = 1e-6 * width  # a value at the end of the range lies in the bin behind it
    outside = (edges[1:] < chosen[0] - rounding) | (edges[:-1] > chosen[1] + rounding)
    clipped = float(counts[outside].sum()) / max(total, 1)
    middles = (edges[filled] + edges[filled + 1]) / 2
    bins = np.clip((middles - low) / (high - low) * _BINS, 0, _BINS - 1).astype(np.int64)
    few = np.bincount(bins, weights=counts[filled], minlength=_BINS)
    return ValueHistogram(low, high, clipped, tuple(int(count) for count in few))
