"""What least squares is run with: one place for every number that is not the user's to set."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HOLDOUT", "LeastSquaresSettings", "rows_to_use"]

HOLDOUT = 5  # every fifth sample judges what the others fit


@dataclass(frozen=True)
class LeastSquaresSettings:
    """How each layer is solved.

    Attributes:
        damping: candidates, relative to the mean diagonal of the Gram matrix; held-out rows choose among them.
        max_sweeps: of coordinate descent per candidate.
        free: any integer may be reached (AdaQuant), else floor or ceil (AdaRound).
        update_bias: the bias takes its best value.
        seed: of the choice of rows.
    """

    free: bool
    update_bias: bool
    seed: int
    damping: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    max_sweeps: int = 20


def rows_to_use(inputs: int) -> int:
    """How many rows of a layer's data are used: many times its K inputs, where the moments hardly move any more."""
    return max(32768, 64 * inputs)
