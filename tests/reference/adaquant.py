"""AdaQuant (Hubara et al., arXiv 2006.10518): the real weight and bias move, the gradient goes straight through."""

from __future__ import annotations

import numpy as np
from reference.least_squares import QuantizedLayer
from reference.training import Adam, Batches, Options, Rows, SplitMix64, Trained, Turns, per_unit


def rounded(layer: QuantizedLayer, weight: np.ndarray) -> np.ndarray:
    """The integers of a real weight, before they are clipped."""
    return np.rint(weight / layer.scales.astype(np.float64)) + layer.zero_points


def margin(layer: QuantizedLayer, weight: np.ndarray) -> float:
    """How far, in steps of the grid, the weight that is nearest to where its rounding changes is from there."""
    steps = weight / layer.scales.astype(np.float64)
    return float(np.abs(steps - np.floor(steps) - 0.5).min())


def train(
    layer: QuantizedLayer, rows: Rows, order: list[int], options: Options, *, batches: Batches | None = None
) -> Trained:
    """order: the fitted samples; batches: the rows of a step, where their inputs are mixed."""
    by = per_unit(rows[order], layer)
    batches = batches or (lambda _, chosen: rows[chosen])
    weight = layer.weight.astype(np.float64)
    bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.astype(np.float64)
    of_weight, of_bias = Adam(options.learning_rate), Adam(options.learning_rate)
    turns = Turns(list(order), SplitMix64.stream(options.seed, 0))
    losses, margins = [], []
    for step in range(options.iterations):
        batch = batches(step, turns.draw(options.batch_size))
        q = rounded(layer, weight)
        used = layer.real(np.clip(q, layer.qmin, layer.qmax))
        losses.append(batch.loss(used, bias))
        margins.append(min(margin(layer, weight), batch.margin(used, bias)))
        by_weight, by_bias = batch.gradients(used, bias)
        in_grid = (q >= layer.qmin) & (q <= layer.qmax)
        weight = weight - of_weight.step(by_weight * by[:, None] * in_grid)
        if options.update_bias:
            bias = bias - of_bias.step(by_bias * by)
    return Trained(
        losses=np.array(losses),
        margins=np.array(margins),
        weight_q=np.clip(rounded(layer, weight), layer.qmin, layer.qmax),
        bias_q=np.rint(bias / layer.bias_scale) if options.update_bias else None,
    )
