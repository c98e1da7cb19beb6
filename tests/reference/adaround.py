"""AdaRound (Nagel et al., arXiv 2004.10568) as published, one output channel a problem of its own."""

from __future__ import annotations

import numpy as np
from reference.least_squares import QuantizedLayer
from reference.output_stage import Stage
from reference.training import Adam, Batches, Options, Rows, SplitMix64, Trained, Turns, per_unit

ZETA, GAMMA = 1.1, -0.1  # equation 23: the sigmoid is stretched to [-0.1, 1.1]


def rectified_sigmoid(v: np.ndarray) -> np.ndarray:
    return np.clip((ZETA - GAMMA) / (1 + np.exp(-v)) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h: np.ndarray) -> np.ndarray:
    return -np.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def rectified_sigmoid_slope(v: np.ndarray) -> np.ndarray:
    s = 1 / (1 + np.exp(-v))
    stretched = (ZETA - GAMMA) * s + GAMMA
    return np.where((stretched > 0) & (stretched < 1), (ZETA - GAMMA) * s * (1 - s), 0)


def regulariser(h: np.ndarray, beta: float) -> np.ndarray:
    """Equation 24, of every weight."""
    return 1 - np.abs(2 * h - 1) ** beta


def regulariser_slope(h: np.ndarray, beta: float) -> np.ndarray:
    return -2 * beta * np.sign(2 * h - 1) * np.abs(2 * h - 1) ** (beta - 1)


def beta_at(step: int, options: Options) -> float:
    """The exponent falls from the first to the second number of beta_range along half a cosine after the warm start."""
    high, low = options.beta_range
    warm = options.warm_start * options.iterations
    if step < warm:
        return high
    return low + (high - low) * (1 + np.cos(np.pi * (step - warm) / (options.iterations - warm))) / 2


def floors(layer: QuantizedLayer) -> tuple[np.ndarray, np.ndarray]:
    """(whole, fraction) of weight / scale, divided in float32 as ONNX does."""
    steps = layer.weight / layer.scales
    whole = np.floor(steps)
    return whole.astype(np.float64), (steps - whole).astype(np.float64)


def soft_weight(layer: QuantizedLayer, v: np.ndarray) -> np.ndarray:
    """Equation 22."""
    whole, _ = floors(layer)
    q = whole + rectified_sigmoid(v) + layer.zero_points
    return layer.real(np.clip(q, layer.qmin, layer.qmax))


def objective(layer: QuantizedLayer, rows: Rows, by: np.ndarray, v: np.ndarray, penalty: float, beta: float) -> float:
    """What is minimised, added up over the output channels: (reconstruction loss) / U + penalty * regulariser."""
    bias = np.zeros(len(v)) if layer.bias is None else layer.bias
    return float(
        rows.row_losses(soft_weight(layer, v), bias) @ by + penalty * regulariser(rectified_sigmoid(v), beta).sum()
    )


def objective_slope(
    layer: QuantizedLayer, rows: Rows, by: np.ndarray, v: np.ndarray, penalty: float, beta: float
) -> np.ndarray:
    bias = np.zeros(len(v)) if layer.bias is None else layer.bias
    by_weight, _ = rows.gradients(soft_weight(layer, v), bias)
    h = rectified_sigmoid(v)
    q = floors(layer)[0] + h + layer.zero_points
    in_grid = (q >= layer.qmin) & (q <= layer.qmax)
    by_h = by_weight * by[:, None] * in_grid * layer.scales + penalty * regulariser_slope(h, beta)
    return by_h * rectified_sigmoid_slope(v)


def fitted_bias(rows: Rows, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A step of Gauss and Newton, halved up to three times where it does not help; without a stage the best bias."""
    power, before = rows.slope_power(weight, bias), rows.row_losses(weight, bias)
    step = np.divide(rows.mean_error(weight, bias), power, out=np.zeros_like(power), where=power > 0)
    if rows.stage == Stage():
        return bias - step
    for part in (1, 1 / 2, 1 / 4, 1 / 8):
        better = rows.are_better(rows.row_losses(weight, bias - step), before)
        step = np.where(better, step, step / 2 if part > 1 / 8 else 0)
    return bias - step


def train(
    layer: QuantizedLayer, rows: Rows, order: list[int], options: Options, *, batches: Batches | None = None
) -> Trained:
    """order: the fitted samples; batches: the rows of a step, where their inputs are mixed."""
    fitted, by = rows[order], per_unit(rows[order], layer)
    batches = batches or (lambda _, chosen: rows[chosen])
    bias = np.zeros(len(layer.weight)) if layer.bias is None else layer.bias.astype(np.float64)
    whole, fraction = floors(layer)
    v = inverse_rectified_sigmoid(fraction)
    adam, turns = Adam(options.learning_rate), Turns(list(order), SplitMix64.stream(options.seed, 0))
    losses, margins = [], []
    for step in range(options.iterations):
        batch = batches(step, turns.draw(options.batch_size))
        losses.append(batch.loss(soft_weight(layer, v), bias))
        margins.append(batch.margin(soft_weight(layer, v), bias))
        warm = step >= options.warm_start * options.iterations
        penalty = 100 * options.reg_param if warm else 0
        v = v - adam.step(objective_slope(layer, batch, by, v, penalty, beta_at(step, options)))
    weight_q = np.clip(whole + (v >= 0) + layer.zero_points, layer.qmin, layer.qmax)
    bias_q = None
    if options.update_bias:
        bias_q = np.rint(fitted_bias(fitted, layer.real(weight_q), bias) / layer.bias_scale)
    return Trained(losses=np.array(losses), margins=np.array(margins), weight_q=weight_q, bias_q=bias_q)
