"""The percentile of |x| as a histogram gives it, from all values at once."""

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
