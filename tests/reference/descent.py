"""Coordinate descent from what the loops led to, on all rows that were trained on: where inputs have 8 bits, nothing
stands behind the layer, and rows are many more than inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from reference.least_squares import QuantizedLayer
from reference.output_stage import Stage
from reference.training import Rows, Trained, keep_better_rows, real_bias
from reference.training_cases import TrainingCase

ROWS_PER_INPUT, SWEEPS = 8, 20


def finished(case: TrainingCase, trained: Trained, *, free: bool, update_bias: bool) -> Trained:
    """What the core makes of the loop's result."""
    fitted, judge = case.rows[case.sets[0]], case.rows[case.judging]
    kept = keep_better_rows(case.layer, judge, trained)
    if case.x.dtype == np.float32 or (case.stage or Stage()) != Stage():
        return kept
    return descended(case.layer, fitted, judge, kept, free=free, update_bias=update_bias)


def descended(
    layer: QuantizedLayer, fitted: Rows, judge: Rows, kept: Trained, *, free: bool, update_bias: bool
) -> Trained:
    """Output by output the best on the judging rows: what is kept, the same with its best bias, or the descended."""
    inputs = layer.weight.shape[1]
    if fitted.positions < ROWS_PER_INPUT * inputs:
        return kept
    weight_q, ends = kept.weight_q.astype(np.float64), layer.rounding_range(free=free)
    for row in range(len(weight_q)):
        weight_q[row] = descend(
            layer, fitted, row, weight_q[row], (ends[0][row], ends[1][row]), update_bias=update_bias
        )
    best = kept
    for candidate in ([kept.weight_q] if update_bias else []) + [weight_q]:
        bias_q = best_bias(layer, fitted, candidate) if update_bias else None
        best = better_rows(layer, judge, best, replace(kept, weight_q=candidate, bias_q=bias_q))
    return best


def descend(
    layer: QuantizedLayer,
    rows: Rows,
    row: int,
    q: np.ndarray,
    ends: tuple[np.ndarray, np.ndarray],
    *,
    update_bias: bool,
) -> np.ndarray:
    """One weight after the other goes to its best integer, until none moves."""
    group, output = divmod(row, rows.y.shape[3])
    x = rows.x[:, group].reshape(rows.positions, -1).astype(np.float64)
    y = rows.y[:, group, :, output].reshape(-1).astype(np.float64)
    if update_bias:  # it makes up for means
        x, y = x - x.mean(axis=0), y - y.mean()
    elif layer.bias is not None:
        y = y - layer.bias[row]
    scale, zero_point, q = layer.scales[row].astype(np.float64), layer.zero_points[row], q.copy()
    for _ in range(SWEEPS):
        before = q.copy()
        for k in range(len(q)):
            residual = x @ (scale * (q - zero_point)) - y
            if (x[:, k] ** 2).sum() > 0:
                step = residual @ x[:, k] / (scale[k] * (x[:, k] ** 2).sum())
                q[k] = np.clip(np.rint(q[k] - step), ends[0][k], ends[1][k])
        if (q == before).all():
            break
    return q


def best_bias(layer: QuantizedLayer, rows: Rows, weight_q: np.ndarray) -> np.ndarray:
    nothing = np.zeros(len(weight_q))
    return np.rint(-rows.mean_error(layer.real(weight_q), nothing) / layer.bias_scale)


def better_rows(layer: QuantizedLayer, judge: Rows, kept: Trained, other: Trained) -> Trained:
    """Keep, output by output, the better of two results."""
    before, after = (judge.row_losses(layer.real(t.weight_q), real_bias(layer, t.bias_q)) for t in (kept, other))
    better = after < before
    bias_q = None if kept.bias_q is None else np.where(better, other.bias_q, kept.bias_q)
    return replace(kept, weight_q=np.where(better[:, None], other.weight_q, kept.weight_q), bias_q=bias_q)
