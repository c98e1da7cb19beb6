"""Moments of rows, by their definition."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """Means over rows, per group, in float64; the order of `_core.Layer.moments`."""

    rows: int
    gram: np.ndarray  # (groups, K, K)
    cross: np.ndarray  # (groups, O, K)
    mean_x: np.ndarray  # (groups, K)
    mean_y: np.ndarray  # (groups, O)
    power: np.ndarray  # (groups, O)


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    """x (groups, rows, K), y (groups, rows, O)."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    n = x.shape[1]
    return Moments(
        n,
        np.einsum("grj,grk->gjk", x, x) / n,
        np.einsum("gro,grk->gok", y, x) / n,
        x.mean(axis=1),
        y.mean(axis=1),
        (y**2).mean(axis=1),
    )
