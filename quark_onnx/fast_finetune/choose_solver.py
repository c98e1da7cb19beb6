"""Which solver a layer gets."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.fast_finetune.batch_store import BatchStore
from quark.onnx.fast_finetune.gradient import GradientLayer
from quark.onnx.fast_finetune.least_squares import LeastSquaresLayer, LeastSquaresSettings
from quark.onnx.fast_finetune.settings import HOLDOUT
from quark.onnx.fast_finetune.solver import LayerInput, LayerSolver, OpenSolver, Solution
from quark.onnx.plan.types import LayerPlan
from quark.onnx.quantization.config.algorithm import AdaQuantConfig, FastFinetuneConfig

__all__ = ["choose_solver", "is_trained_in_steps"]


def choose_solver(config: FastFinetuneConfig, samples: int, store: BatchStore) -> OpenSolver:
    """What opens the solver of a layer.

    "auto" is least squares where the loss is quadratic in the weight. Behind an activation or the output's
    quantization, and with mixed inputs, it is least squares and the published loop: held-out samples choose, output by
    output, by the loss as it is. "gradient" is the loop as published: it trains on all samples.

    Args:
        samples: how many each layer will be fed.
    """
    settings = LeastSquaresSettings(
        free=isinstance(config, AdaQuantConfig), update_bias=config.update_bias is not False, seed=config.fixed_seed
    )

    def least_squares(layer: LayerPlan, pool: _core.ThreadPool) -> LeastSquaresLayer:
        return LeastSquaresLayer(layer, settings, samples=samples, pool=pool)

    def gradient(layer: LayerPlan, pool: _core.ThreadPool, *, update_bias: bool, holdout: int) -> GradientLayer:
        return GradientLayer(layer, config, store, update_bias=update_bias, holdout=holdout, pool=pool)

    def both(layer: LayerPlan, pool: _core.ThreadPool) -> LayerSolver:
        if not is_trained_in_steps(layer, config):
            return least_squares(layer, pool)
        trained = gradient(layer, pool, update_bias=settings.update_bias, holdout=HOLDOUT)
        return _Both(layer.node, least_squares(layer, pool), trained)

    match config.solver:
        case "least_squares":
            return least_squares
        case "gradient":
            return lambda layer, pool: gradient(layer, pool, update_bias=bool(config.update_bias), holdout=0)
        case _:
            return both


def is_trained_in_steps(layer: LayerPlan, config: FastFinetuneConfig) -> bool:
    """Whether the published loop has a part in solving a layer."""
    if config.solver == "auto":
        return not layer.shares and (layer.stage is not None or config.drop_ratio < 1)
    return config.solver == "gradient"


class _Both:
    """Both solvers of one layer. (`LayerSolver`)"""

    def __init__(self, name: str, least_squares: LeastSquaresLayer, gradient: GradientLayer) -> None:
        self._name, self._least_squares = name, least_squares
        self._gradient: GradientLayer | None = gradient
        self.messages = gradient.messages

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        self._least_squares.feed(x, y)
        try:
            if self._gradient is not None:
                self._gradient.feed(x, y, x_float)
        except ValueError as error:
            text = f"by least squares alone, as the published loop cannot take its data: {error}"
            self.messages.append((logging.INFO, f"layer {self._name}: {text}"))
            self._gradient = None

    def solve(self) -> Solution:
        solution = self._least_squares.solve()
        return solution if self._gradient is None else self._gradient.solve(solution)
