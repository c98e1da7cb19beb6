"""What stands between a layer's output and its squared error, by definition: an activation, then quantization.

Everything is float64. Arrays are as the layer puts them out: (samples, outputs, sizes...) or (samples, ..., outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ERF = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True)
class Activation:
    """f(z), its derivative, and where that jumps."""

    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    kinks: tuple[Any, ...] = ()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def normal(z: np.ndarray) -> np.ndarray:
    return (1 + ERF(z / math.sqrt(2))) / 2


def normal_density(z: np.ndarray) -> np.ndarray:
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def activation(name: str, a: Any, b: float) -> Activation:
    """Make the activation, which takes one number at a time; `a` is a number or one of each output."""
    match name:
        case "none":
            return Activation(lambda z: z, np.ones_like)
        case "clip":
            return Activation(lambda z: np.clip(z, a, b), lambda z: (z >= a) & (z <= b), (a, b))
        case "leaky_relu":
            return Activation(lambda z: np.where(z < 0, a * z, z), lambda z: np.where(z < 0, a, 1.0), (0,))
        case "sigmoid":
            return Activation(sigmoid, lambda z: sigmoid(z) * sigmoid(-z))
        case "tanh":
            return Activation(np.tanh, lambda z: 1 / np.cosh(z) ** 2)
        case "gelu":
            return Activation(lambda z: z * normal(z), lambda z: normal(z) + z * normal_density(z))
        case "gelu_tanh":
            root = math.sqrt(2 / math.pi)

            def inner(z: np.ndarray) -> np.ndarray:
                return root * (z + 0.044715 * z**3)

            return Activation(
                lambda z: z * (1 + np.tanh(inner(z))) / 2,
                lambda z: (1 + np.tanh(inner(z)) + z / np.cosh(inner(z)) ** 2 * root * (1 + 0.134145 * z**2)) / 2,
            )
        case "hard_sigmoid":
            return Activation(
                lambda z: np.clip(a * z + b, 0, 1),
                lambda z: np.where((a * z + b >= 0) & (a * z + b <= 1), a, 0.0),
                (-b / a, (1 - b) / a),
            )
        case "silu":
            return Activation(lambda z: z * sigmoid(z), lambda z: sigmoid(z) * (1 + z * sigmoid(-z)))
        case "hard_swish":
            return Activation(
                lambda z: z * np.clip(z / 6 + 0.5, 0, 1),
                lambda z: np.where(z < -3, 0, np.where(z > 3, 1, z / 3 + 0.5)),
                (-3, 3),
            )
    raise ValueError(name)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The loss compares Q(f(z)) with f(y); folded: Q(z) with f(y). Softmax is f too, along an axis of y."""

    activation: str = "none"
    a: float = 0.0
    b: float = 0.0
    slopes: np.ndarray | None = None  # a of each output, as ONNX PRelu has it: of a shape that fits y
    axis: int = 0  # of softmax
    folded: bool = False
    grid: tuple[float, int, int, int] | None = None  # scale, zero point, least and largest integer

    @property
    def core(self) -> tuple[Any, ...]:
        """The stage as `_core.TrainingData` takes it."""
        slopes = None if self.slopes is None else self.slopes.ravel()
        return (self.activation, self.a, self.b, slopes, self.axis, self.folded, self.grid)

    @property
    def couples_outputs(self) -> bool:
        return self.activation == "softmax"

    @property
    def f(self) -> Activation:
        """What it is but for softmax."""
        return activation(self.activation, self.a if self.slopes is None else self.slopes.astype(np.float64), self.b)

    def target(self, y: np.ndarray) -> np.ndarray:
        if self.couples_outputs:
            shares = np.exp(y - y.max(axis=self.axis, keepdims=True))
            return shares / shares.sum(axis=self.axis, keepdims=True)
        return self.f.value(y)

    def before_rounding(self, z: np.ndarray) -> np.ndarray:
        return z if self.folded else self.target(z)

    def value(self, z: np.ndarray) -> np.ndarray:
        value = self.before_rounding(z)
        if self.grid is None:
            return value
        scale, zero_point, qmin, qmax = self.grid
        return (np.clip(np.rint(value / scale) + zero_point, qmin, qmax) - zero_point) * scale

    def inside(self, z: np.ndarray) -> np.ndarray:
        """The derivative of Q, passed straight through: 1 inside of the grid, else 0."""
        if self.grid is None:
            return np.ones_like(z)
        scale, zero_point, qmin, qmax = self.grid
        q = np.rint(self.before_rounding(z) / scale) + zero_point
        return ((q >= qmin) & (q <= qmax)).astype(np.float64)

    def slope(self, z: np.ndarray) -> np.ndarray:
        """The derivative of every value by its own z, without softmax."""
        if self.folded:
            return self.inside(z)
        return self.inside(z) * self.f.slope(z)

    def jacobian(self, z: np.ndarray) -> np.ndarray:
        """Return the slopes of softmax, its axis moved to the end: [..., j, i] is the derivative of value j by z i."""
        p, inside = (np.moveaxis(v, self.axis, -1) for v in (self.target(z), self.inside(z)))
        return (inside * p)[..., None] * (np.eye(p.shape[-1]) - p[..., None, :])

    def pull_back(self, z: np.ndarray, errors: np.ndarray) -> np.ndarray:
        """Half the derivative of the sum of squared errors by each z."""
        if not self.couples_outputs:
            return self.slope(z) * errors
        pulled = np.einsum("...ji,...j->...i", self.jacobian(z), np.moveaxis(errors, self.axis, -1))
        return np.moveaxis(pulled, -1, self.axis)

    def slope_power(self, z: np.ndarray) -> np.ndarray:
        """For each z the sum of the squares of the derivatives of all values by it."""
        if not self.couples_outputs:
            return self.slope(z) ** 2
        return np.moveaxis((self.jacobian(z) ** 2).sum(axis=-2), -1, self.axis)

    def margin(self, z: np.ndarray) -> float:
        """How far the z that is nearest to a jump of value or slope is from there, in z or in steps of the grid."""
        distances = [np.inf]
        if not self.couples_outputs and not self.folded:
            distances += [np.abs(z - kink).min() for kink in self.f.kinks]
        if self.grid is not None:
            steps = self.before_rounding(z) / self.grid[0]
            distances.append(np.abs(steps - np.floor(steps) - 0.5).min())
        return float(min(distances))
