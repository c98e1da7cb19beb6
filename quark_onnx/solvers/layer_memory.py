"""How much memory solving a layer takes, told before any of it is allocated."""

from __future__ import annotations

from quark.onnx.plan.types import LayerPlan

__all__ = ["least_squares_bytes", "rows_bytes", "rows_that_fit", "training_bytes"]

# Least squares holds, for each group, squares of K x K: the moments of the fitted and of the held-out rows, twice while
# they are centred, a damped matrix, its factor in two precisions, and the judge's.
_PER_SQUARE = 2 * 2 * 8 + (4 + 8 + 4) + 4
_PER_WEIGHT = 2 * 2 * 8 + 4 + 4  # products of inputs and targets, as the moments; integers before and after
_LANES = 32  # outputs of a group are solved in blocks of so many
_PER_LANE = 4 * (7 + 2) + 8  # seven arrays, two trials; targets in float64
_PANELS = 4 << 20  # of rows
_PER_INPUT = 32 * (6 * 4 + 2 * 8)  # a thread's scratch
_AT_ONCE = 1 << 21  # weights whose integers are sought together
_BLOCK, _PIECE = 64, 128  # inputs and outputs of a product with rows
_FACTORS = 64 << 20  # that are kept for further outputs
_MOST_ROWS, _LEAST_ROWS = 1 << 12, 16  # whose factor is made within a second, that are worth it
_PER_TRAINED_WEIGHT = 4 * 11  # the loops' variables, both of Adam's averages, gradients, the best and the last window's


def least_squares_bytes(layer: LayerPlan, threads: int) -> int:
    """Bytes of the moments and of the solver."""
    outputs, inputs = map(int, layer.weight.rows.shape)
    blocks = layer.groups * -(-outputs // (layer.groups * _LANES))
    return (
        _PANELS
        + _PER_SQUARE * layer.groups * inputs**2
        + _PER_WEIGHT * outputs * inputs
        + _PER_LANE * blocks * _LANES * inputs
        + _PER_INPUT * threads * inputs
    )


def rows_bytes(layer: LayerPlan, rows: int, threads: int) -> int:
    """Bytes of so many fitted rows, a quarter as many held-out ones, and of the solver that works on rows."""
    outputs, inputs = map(int, layer.weight.rows.shape)
    lines = layer.groups * inputs
    all_rows = rows + -(-rows // 4)
    at_once = max(2 * _LANES, _AT_ONCE // inputs)  # outputs
    kept = 4 * all_rows * (lines + outputs)  # in the layer; the same again, centred
    factor = 4 * lines * (rows + _BLOCK) + 3 * 8 * layer.groups * rows**2  # with X X', M and its inverse
    batch = at_once * (4 * (4 * rows) + 4 * 8 * inputs)
    scratch = threads * 4 * _PIECE * (3 * rows + 3 * _BLOCK)
    return _PANELS + 2 * kept + factor + _FACTORS + 4 * _BLOCK * lines + batch + scratch + 2 * 4 * outputs * inputs


def rows_that_fit(layer: LayerPlan, free: int, threads: int) -> int:
    """How many fitted rows there is memory for, as many as inputs or a half, a quarter, ... of that; 0: not even 16."""
    rows = min(int(layer.weight.rows.shape[1]), _MOST_ROWS)
    while rows >= _LEAST_ROWS and rows_bytes(layer, rows, threads) > free:
        rows //= 2
    return rows if rows >= _LEAST_ROWS else 0


def training_bytes(layer: LayerPlan) -> int:
    """Bytes of the published loops' variables; the samples are the store's."""
    return _PER_TRAINED_WEIGHT * int(layer.weight.rows.size)
