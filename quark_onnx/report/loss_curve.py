"""The losses of a training loop, few enough to be kept and drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LossCurve", "loss_curve"]

LossCurve = tuple[tuple[int, float], ...]

_POINTS = 100


def loss_curve(losses: NDArray[np.float64]) -> LossCurve:
    """(steps so far, mean loss of the steps since the point before), at most 100 points; none of losses that are not
    finite.
    """
    parts = np.array_split(losses, min(_POINTS, len(losses))) if len(losses) else []
    ends = np.cumsum([len(part) for part in parts])
    means = [float(part.mean()) for part in parts]
    return tuple((int(end), mean) for end, mean in zip(ends, means, strict=True) if np.isfinite(mean))
