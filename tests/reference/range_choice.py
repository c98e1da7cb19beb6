"""What each CalibMethod makes of a histogram or of the values themselves, slow and obvious."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from reference.fake_quant import affine_from_range, fake_quant

LADDER = [2.0 ** (-i / 16) for i in range(97)]


@dataclass(frozen=True)
class Grid:
    """The quantizer whose error counts."""

    qmin: int
    qmax: int
    symmetric: bool
    scale_type: str = "Float32"

    def error(self, x: np.ndarray, low: float, high: float, *, squared: bool) -> float:
        """Mean of |x - Q(x)|, or of its square, under the range."""
        affine = affine_from_range(
            low, high, self.qmin, self.qmax, symmetric=self.symmetric, scale_type=self.scale_type
        )
        d = np.abs(fake_quant(x, *affine, self.qmin, self.qmax).astype(np.float64) - x)
        return float(np.mean(d**2 if squared else d))


def two_sided_percentile(width: float, counts: np.ndarray, percentile: float) -> tuple[float, float]:
    """The bin edges with at least half of what is beyond the percentile on each side left out, not more."""
    edges = width * np.arange(-len(counts) // 2, len(counts) // 2 + 1)
    wanted = (100 + percentile) / 200 * counts.sum()
    high = edges[1:][np.argmax(np.cumsum(counts) >= wanted)]
    low = edges[:-1][len(counts) - 1 - np.argmax(np.cumsum(counts[::-1]) >= wanted)]
    return float(low), float(high)


def least_squared_error(x: np.ndarray, grid: Grid, steps: int) -> float:
    """The least error of all pairs of factors of the ladder, every `steps`-th of it."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if grid.symmetric:
        low, high = -max(-low, high), max(-low, high)
    factors = LADDER[::steps]
    pairs = (
        zip(factors, factors, strict=True)
        if grid.symmetric or 0 in (low, high)
        else itertools.product(factors, factors)
    )
    return min(grid.error(x, low * a, high * b, squared=True) for a, b in pairs)


def divergence(counts: np.ndarray, half: int, levels: int) -> float:
    """KL divergence of a histogram clipped to `half` bins on each side of 0 from `levels` even levels of that part."""
    middle = len(counts) // 2
    inside = counts[middle - half : middle + half].astype(np.float64)
    if not inside.any():
        return np.inf
    p = inside.copy()
    p[0] += counts[: middle - half].sum()
    p[-1] += counts[middle + half :].sum()
    mass, filled = inside.reshape(levels, -1).sum(axis=1), (p.reshape(levels, -1) > 0).sum(axis=1)
    even = np.where(mass > 0, mass / np.maximum(filled, 1), 1e-4)  # no level leaves a bin that holds something empty
    q = np.where(p > 0, np.repeat(even, len(p) // levels), 0)
    p, q = p[p > 0] / p.sum(), q[p > 0] / q.sum()
    return float((p * np.log(p / q)).sum())


def entropy_threshold(width: float, counts: np.ndarray, largest: float, levels: int) -> tuple[float, list[float]]:
    """(threshold, divergences of all): the window with the least divergence, of equals the widest."""
    counts = counts.astype(np.float64)
    middle = len(counts) // 2
    counts[middle] = min(counts[middle], counts[middle + 1])  # zero is exact whatever the range
    found = []
    for half in range(levels // 2, middle + 1, levels // 2):
        found.append(divergence(counts, half, levels))
        if half * width > largest:
            break
    best = len(found) - 1 - int(np.argmin(found[::-1]))
    return (best + 1) * (levels // 2) * width, found
