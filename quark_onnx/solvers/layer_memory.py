"""How much memory solving a layer takes, told before any of it is allocated."""

from __future__ import annotations

from quark.onnx.plan.types import LayerPlan

__all__ = ["least_squares_bytes", "training_bytes"]

# Least squares holds, for each group, squares of K x K: the moments of the fitted and of the held-out rows, twice while
# they are centred, a damped matrix, its factor in two precisions, and the judge's.
_PER_SQUARE = 2 * 2 * 8 + (4 + 8 + 4) + 4
_PER_WEIGHT = 2 * 2 * 8 + 4 + 4  # products of inputs and targets, as the moments; integers before and after
_LANES = 32  # outputs of a group are solved in blocks of so many
_PER_LANE = 4 * (7 + 2) + 8  # seven arrays, two trials; targets in float64
_PANELS = 4 << 20  # of rows
_PER_INPUT = 32 * (6 * 4 + 2 * 8)  # a thread's scratch
_PER_TRAINED_WEIGHT = 4 * 10  # the loops' variables, both of Adam's averages, gradients, the best so far


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


def training_bytes(layer: LayerPlan) -> int:
    """Bytes of the published loops' variables; the samples are the store's."""
    return _PER_TRAINED_WEIGHT * int(layer.weight.rows.size)
