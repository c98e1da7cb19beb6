"""What AdaRound and AdaQuant by gradient share: the order of the samples, the loss, Adam. All in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from reference.least_squares import QuantizedLayer, start
from reference.output_stage import Stage

MASK = 2**64 - 1


@dataclass
class SplitMix64:
    """Steele, Lea, Flood 2014. (csrc/base/random.h)"""

    state: int

    @staticmethod
    def stream(seed: int, index: int) -> SplitMix64:
        """Stream 0 draws the samples of a step, the others mix inputs."""
        return SplitMix64(SplitMix64(seed ^ (index * 0xD1342543DE82EF95 & MASK)).next())

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        return self.next() % n


@dataclass
class Turns:
    """Samples in a shuffled order (Fisher, Yates), which is shuffled anew where it does not last for a step."""

    order: list[int]
    random: SplitMix64
    place: int = 0

    def draw(self, count: int) -> list[int]:
        if self.place + count > len(self.order):
            self.place = 0
        if self.place == 0:
            for i in range(len(self.order)):
                j = i + self.random.below(len(self.order) - i)
                self.order[i], self.order[j] = self.order[j], self.order[i]
        self.place += count
        return self.order[self.place - count : self.place]


def is_held_out(samples: int, holdout: int) -> np.ndarray:
    """Every holdout-th sample, if there are at least two of them."""
    if holdout == 0 or samples < 2 * holdout:
        return np.zeros(samples, bool)
    return np.arange(samples) % holdout == holdout - 1


@dataclass(frozen=True)
class Rows:
    """What every output position sees and should give: x (samples, groups, positions, K), y (.., positions, O).

    sizes: the positions by axis; they come behind the outputs in what the layer puts out, or before them.
    """

    x: np.ndarray
    y: np.ndarray
    sizes: tuple[int, ...]
    outputs_first: bool
    stage: Stage = field(default_factory=Stage)

    def __getitem__(self, chosen: list[int] | np.ndarray) -> Rows:
        return replace(self, x=self.x[chosen], y=self.y[chosen])

    def as_layer(self, rows: np.ndarray) -> np.ndarray:
        """Brings (samples, groups, positions, O) into the shape that the layer puts out."""
        if self.outputs_first:
            return rows.transpose(0, 1, 3, 2).reshape(len(rows), -1, *self.sizes)
        return rows.reshape(len(rows), *self.sizes, -1)

    def as_rows(self, outputs: np.ndarray) -> np.ndarray:
        """And back."""
        samples, groups, positions, each = self.y.shape
        if self.outputs_first:
            return outputs.reshape(samples, groups, each, positions).transpose(0, 1, 3, 2)
        return outputs.reshape(samples, groups, positions, each)

    def before_stage(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """weight (groups * O, K), bias (groups * O) -> what the layer puts out."""
        groups, outputs = self.y.shape[1], self.y.shape[3]
        out = np.einsum("sgpk,gok->sgpo", self.x, weight.reshape(groups, outputs, -1))
        return self.as_layer(out + bias.reshape(groups, 1, outputs))

    def target(self) -> np.ndarray:
        return self.stage.target(self.as_layer(self.y))

    def errors(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the errors of the values that the loss compares: (samples, groups, positions, O)."""
        return self.as_rows(self.stage.value(self.before_stage(weight, bias)) - self.target())

    def pulled_back(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Half the derivative of all squared errors by each of the layer's outputs."""
        z = self.before_stage(weight, bias)
        return self.as_rows(self.stage.pull_back(z, self.stage.value(z) - self.target()))

    @property
    def positions(self) -> int:
        """All samples together have this many positions."""
        return self.x.shape[0] * self.x.shape[2]

    def row_losses(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Mean squared error of every output."""
        return (self.errors(weight, bias) ** 2).mean(axis=(0, 2)).reshape(bias.shape)

    def loss(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Mean over samples and positions of the sum over outputs."""
        return float((self.errors(weight, bias) ** 2).sum() / self.positions)

    def power(self) -> float:
        """What the loss is relative to."""
        return float((self.target() ** 2).sum() / self.positions)

    def gradients(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the gradients of the loss by the weight and by the bias."""
        errors = self.pulled_back(weight, bias)
        by_weight = 2 * np.einsum("sgpo,sgpk->gok", errors, self.x) / self.positions
        by_bias = 2 * errors.sum(axis=(0, 2)) / self.positions
        return by_weight.reshape(weight.shape), by_bias.reshape(bias.shape)

    def mean_error(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Return the mean error of every output, times the derivative of the stage."""
        return self.pulled_back(weight, bias).mean(axis=(0, 2)).reshape(bias.shape)

    def slope_power(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The mean square of that derivative."""
        power = self.as_rows(self.stage.slope_power(self.before_stage(weight, bias)))
        return power.mean(axis=(0, 2)).reshape(bias.shape)

    def are_better(self, after: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Which outputs have a lower loss; behind softmax all of them or none."""
        if self.stage.couples_outputs:
            return np.full(len(after), after.sum() < before.sum())
        return after < before

    def margin(self, weight: np.ndarray, bias: np.ndarray) -> float:
        return self.stage.margin(self.before_stage(weight, bias))


Batches = Callable[[int, list[int]], Rows]  # the rows of a step, by its number and its samples


def units(rows: Rows, layer: QuantizedLayer) -> np.ndarray:
    """U of every output channel: E[scale^2 x^2] E[f'^2], over the inputs of its group, at the start."""
    power = np.repeat((rows.x**2).mean(axis=(0, 2)), rows.y.shape[3], axis=0)
    by_step = (layer.scales.astype(np.float64) ** 2 * power).mean(axis=1)
    return by_step * rows.slope_power(layer.real(layer.weight_q), start(layer).bias)


def per_unit(rows: Rows, layer: QuantizedLayer) -> np.ndarray:
    """1 / U, and 0 where all inputs are 0 or nothing comes through the stage."""
    u = units(rows, layer)
    return np.divide(1, u, out=np.zeros_like(u), where=u > 0)


@dataclass
class Adam:
    """Kingma, Ba 2014 with its usual constants, for one array."""

    rate: float
    steps: int = 0
    first: np.ndarray = field(default_factory=lambda: np.zeros(()))
    second: np.ndarray = field(default_factory=lambda: np.zeros(()))

    def step(self, gradient: np.ndarray) -> np.ndarray:
        """What is to be subtracted from the array."""
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        return self.rate * first / (np.sqrt(second) + 1e-8)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options as `_core.TrainingData.train` takes them."""

    batch_size: int
    iterations: int
    learning_rate: float
    update_bias: bool = False
    reg_param: float = 0.01
    warm_start: float = 0.2
    beta_range: tuple[float, float] = (20.0, 2.0)
    drop_ratio: float = 1.0
    window: int = 0
    patience: int = 0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    losses: np.ndarray  # of every step, before it is taken
    margins: np.ndarray  # at every step, from where a rounding or a derivative jumps: float32 may go another way there
    weight_q: np.ndarray
    bias_q: np.ndarray | None


def real_bias(layer: QuantizedLayer, bias_q: np.ndarray | None) -> np.ndarray:
    return start(layer).bias if bias_q is None else layer.bias_scale.astype(np.float64) * bias_q


def keep_better_rows(layer: QuantizedLayer, judge: Rows, trained: Trained) -> Trained:
    """Output channels whose loss on the judging samples did not fall are as they were; coupled ones all or none."""
    before = judge.row_losses(layer.real(layer.weight_q), start(layer).bias)
    after = judge.row_losses(layer.real(trained.weight_q), real_bias(layer, trained.bias_q))
    better = judge.are_better(after, before)
    bias_q = trained.bias_q
    if bias_q is not None:
        bias_q = np.where(better, bias_q, np.rint(layer.bias / layer.bias_scale))
    return replace(trained, weight_q=np.where(better[:, None], trained.weight_q, layer.weight_q), bias_q=bias_q)


def early_stop(watched: np.ndarray, window: int, patience: int) -> tuple[int, int]:
    """(steps run, steps before the result): the result is what the last loss of the best window was found with."""
    best, best_end, bad = np.inf, 0, 0
    for end in range(window, len(watched) + 1, window):
        mean = watched[end - window : end].mean()
        if mean < best:
            best, best_end, bad = mean, end - 1, 0
            continue
        bad += 1
        if bad > patience:
            return end, best_end
    return len(watched), best_end
