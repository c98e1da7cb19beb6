"""Whether a difference between two models is more than the chance of the samples that they are compared on."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["standard_errors"]


def standard_errors(worse: NDArray[np.float64], better: NDArray[np.float64]) -> float:
    """How many of its standard errors the mean of `worse` is above that of `better` (the statistic of the paired
    t-test); both of shape (samples,), of the same samples.

    Infinite where every sample says the same, or the mean is infinite. One sample tells nothing of chance: it counts
    for as much as the error has grown, relative to what it was.
    """
    if not len(worse):
        return 0.0
    with np.errstate(invalid="ignore"):
        more = worse - better
    more[np.isnan(more)] = 0.0  # both are infinite
    mean = float(more.mean())
    if mean == 0 or math.isinf(mean):
        return mean
    if len(more) == 1:
        return math.inf if better[0] == 0 else mean / float(better[0])
    deviation = float(more.std(ddof=1))
    return mean * math.sqrt(len(more)) / deviation if deviation > 0 else math.copysign(math.inf, mean)
