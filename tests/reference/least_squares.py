"""Integer least squares by its definition: solved on some rows, to be judged on others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from reference.moments import moments_of
from reference.rounding import closest_point, coordinate_descent, nearest_plane

FEW_INPUTS = 32


@dataclass(frozen=True, kw_only=True)
class QuantizedLayer:
    """One group. weight (O, K), scale and zero_point (O), or (O, blocks) for K / blocks neighbouring inputs each; bias
    (O) is its real value at the start.
    """

    weight: np.ndarray
    weight_q: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    qmin: int
    qmax: int
    bias: np.ndarray | None = None
    bias_scale: np.ndarray | None = None

    @property
    def scales(self) -> np.ndarray:
        """Every weight has its scale here: (O, K)."""
        return self._of_every_weight(self.scale)

    @property
    def zero_points(self) -> np.ndarray:
        return self._of_every_weight(self.zero_point)

    def _of_every_weight(self, values: np.ndarray) -> np.ndarray:
        blocks = values.reshape(len(self.weight), -1)
        return np.repeat(blocks, self.weight.shape[1] // blocks.shape[1], axis=1)

    def real(self, weight_q: np.ndarray) -> np.ndarray:
        return self.scales.astype(np.float64) * (weight_q - self.zero_points)

    def rounding_range(self, *, free: bool) -> tuple[np.ndarray, np.ndarray]:
        """The least and the largest integer of every weight."""
        if free:
            return np.full(self.weight.shape, self.qmin), np.full(self.weight.shape, self.qmax)
        floor = np.floor(self.weight / self.scales).astype(np.int64) + self.zero_points
        return np.clip(floor, self.qmin, self.qmax), np.clip(floor + 1, self.qmin, self.qmax)


@dataclass(frozen=True, kw_only=True)
class Solution:
    weight_q: np.ndarray
    bias: np.ndarray  # (O), real


def errors(layer: QuantizedLayer, solution: Solution, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Mean squared error of each output. x (rows, K), y (rows, O)."""
    output = x.astype(np.float64) @ layer.real(solution.weight_q).T + solution.bias
    return ((output - y) ** 2).mean(axis=0)


def start(layer: QuantizedLayer) -> Solution:
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.astype(np.float64)
    return Solution(weight_q=layer.weight_q, bias=bias)


def candidates(
    layer: QuantizedLayer,
    x: np.ndarray,
    y: np.ndarray,
    *,
    free: bool,
    update_bias: bool,
    damping: list[float],
    max_sweeps: int,
) -> list[Solution]:
    """The start first; then in the order of the core."""
    bias_moves = update_bias and layer.bias is not None and layer.bias_scale is not None
    first = start(layer)
    gram, cross, mean_x, mean_y, _ = (moment[0] for moment in moments_of(x[None], y[None])[1:])

    def with_best_bias(weight_q: np.ndarray) -> Solution:
        if not bias_moves:
            return Solution(weight_q=weight_q, bias=first.bias)
        step = layer.bias_scale.astype(np.float64)
        return Solution(weight_q=weight_q, bias=step * np.rint((mean_y - layer.real(weight_q) @ mean_x) / step))

    if bias_moves:
        gram, cross = gram - np.outer(mean_x, mean_x), cross - np.outer(mean_y, mean_x)
    else:
        cross = cross - np.outer(first.bias, mean_x)
    found = [first, with_best_bias(layer.weight_q)] if bias_moves else [first]
    lo, hi = layer.rounding_range(free=free)
    for relative in damping:
        lam = relative * np.trace(gram) / len(gram)
        damped, shifted = gram + lam * np.eye(len(gram)), cross + lam * layer.weight
        grids = list(zip(layer.scales.astype(np.float64), layer.zero_points, lo, hi, strict=True))
        begins = [layer.weight_q]
        if lam > 0:
            targets = np.linalg.solve(damped, shifted.T).T
            rounded = closest_point if len(gram) <= FEW_INPUTS else nearest_plane
            begins.append([rounded(t, damped, *grid) for t, grid in zip(targets, grids, strict=True)])
        for begin in begins:
            rows = zip(begin, shifted, grids, strict=True)
            found.append(
                with_best_bias(np.stack([coordinate_descent(q, damped, c, *grid, max_sweeps) for q, c, grid in rows]))
            )
    return found
