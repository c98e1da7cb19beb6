"""The parameters of a quantized weight, and the widest range that has any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["WIDEST", "WeightParams"]

WIDEST = 1e38  # of a range: float32 holds the difference of its ends, and what is rounded to them


@dataclass(frozen=True, eq=False)
class WeightParams:
    """How one weight is quantized: q = clip(round(w / scale) + zero_point), ties to even.

    Attributes:
        scale: float32, shape (1,), or (channels,) with an axis; with blocks the weight's shape, but for as many blocks
            along the axis.
        zero_point: integers of the same shape.
        axis: the axis of the weight that the channels, or the blocks, lie on; None if there is one scale for all.
        block: so many neighbours along the axis share a scale, the last block may be short; 0: there are no blocks.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.integer[Any]]
    axis: int | None = None
    block: int = 0
