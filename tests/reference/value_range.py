"""Histograms and percentiles from all values at once."""

from __future__ import annotations

import math

import numpy as np


def bin_width(x: np.ndarray, bins: int) -> float:
    """The least power of two above max |x| / bins, but not below 2^-120."""
    return 2.0 ** max(-120, math.frexp(float(np.abs(x).max()) / bins)[1])


def histogram_percentile(x: np.ndarray, percentile: float, bins: int) -> float:
    """The smallest bin edge with at least that percentage of |x| in the bins below it."""
    width = bin_width(x, bins)
    index = np.minimum(np.floor(np.abs(x.astype(np.float64)) / width), bins - 1).astype(int)
    below = np.cumsum(np.bincount(index, minlength=bins))
    return float(width * (np.argmax(below >= percentile / 100 * x.size) + 1))


def signed_histogram(x: np.ndarray, bins: int) -> tuple[float, np.ndarray]:
    """(width, counts) of 2 * bins bins around 0; a value on an edge belongs to the bin farther from 0."""
    width = bin_width(x, bins)
    edges = width * np.arange(bins + 1)
    positive, negative = (np.histogram(side.astype(np.float64), edges)[0] for side in (x[x >= 0], -x[x < 0]))
    return width, np.concatenate([negative[::-1], positive])
