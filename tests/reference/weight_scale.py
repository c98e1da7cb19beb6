"""CalibMethod.MinOutputMSE by brute force: every factor of the grid is tried on every row."""

from __future__ import annotations

import numpy as np
from reference.fake_quant import affine_from_range, fake_quant
from reference.moments import moments_of

COARSE = [2.0 ** (-i / 4) for i in range(25)]
FINE = [2.0 ** (i / 16) for i in (3, 2, 1, -1, -2, -3)]


class ScaleProblem:
    """One group. weight (O, K), x (rows, K)."""

    def __init__(
        self, weight: np.ndarray, x: np.ndarray, *, qmin: int, qmax: int, symmetric: bool, bias_free: bool
    ) -> None:
        self.weight, self.qmin, self.qmax, self.symmetric = weight, qmin, qmax, symmetric
        _, gram, _, mean, _, _ = moments_of(x[None], np.zeros((1, len(x), 1)))
        gram = gram[0] - np.outer(mean[0], mean[0]) if bias_free else gram[0]
        self.gram = gram + 1e-4 * np.trace(gram) / len(gram) * np.eye(len(gram))

    def affine(self, rows: slice, factor: float) -> tuple[float, int]:
        """What the range of these rows, times the factor, gives."""
        w = self.weight[rows].astype(np.float64)
        return affine_from_range(w.min() * factor, w.max() * factor, self.qmin, self.qmax, symmetric=self.symmetric)

    def relative_error(self, rows: slice, factor: float) -> float:
        """Squared error of each output relative to its power plus the mean power, added up over the rows."""
        w = self.weight[rows]
        d = fake_quant(w, *self.affine(rows, factor), self.qmin, self.qmax).astype(np.float64) - w
        error = np.einsum("oj,jk,ok->o", d, self.gram, d)
        power = np.einsum("oj,jk,ok->o", w.astype(np.float64), self.gram, w.astype(np.float64))
        weight = power + power.mean()
        return float((error[weight > 0] / weight[weight > 0]).sum())

    def best_factor(self, rows: slice) -> float:
        """The best of a coarse grid, then of a fine one around it; of equals the largest.

        The range may grow until the largest weight fits above 0, where a symmetric grid has one integer less.
        """
        uneven = self.symmetric and -self.qmin > self.qmax
        widest = (self.qmax - self.qmin) / 2 / self.qmax if uneven else 1.0
        coarse = min(COARSE, key=lambda f: self.relative_error(rows, f))
        return min([coarse, *(min(widest, coarse * f) for f in FINE)], key=lambda f: self.relative_error(rows, f))
