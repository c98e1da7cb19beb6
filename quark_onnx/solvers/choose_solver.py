"""Which solver a layer gets."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.config.algorithm import AdaQuantConfig, FastFinetuneConfig
from quark.onnx.inference.sessions import Engine
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import LayerPlan
from quark.onnx.solvers.gradient import GradientLayer
from quark.onnx.solvers.layer_memory import least_squares_bytes, rows_bytes, rows_that_fit, training_bytes
from quark.onnx.solvers.least_squares import KeptRows, LeastSquaresLayer, LeastSquaresSettings
from quark.onnx.solvers.solve_layer import out_of_memory
from quark.onnx.solvers.solver import LayerInput, LayerSolver, LeftOut, OpenSolver, Solution
from quark.onnx.stores.batch_store import BatchStore

__all__ = ["as_far_as_memory_goes", "choose_solver", "is_trained_in_steps"]

_MIB = 1 << 20


def choose_solver(config: FastFinetuneConfig, samples: int, store: BatchStore, engine: Engine) -> OpenSolver:
    """What opens the solver of a layer.

    "auto" is least squares where the loss is quadratic in the weight. Behind an activation or the output's
    quantization, and with mixed inputs, it is least squares and the published loop: held-out samples choose, output by
    output, by the loss as it is. "gradient" is the loop as published: it trains on all samples.

    Where least squares would take more memory than there is, "auto" is the published loop alone, and a layer that no
    solver has the memory for is left out with its reason.

    Args:
        samples: how many each layer will be fed.
        engine: whose memory is the limit.
    """
    solvers = _Solvers(config, samples, store, engine)
    ways: dict[str, OpenSolver] = {"least_squares": solvers.least_squares, "gradient": solvers.gradient}
    return as_far_as_memory_goes(ways.get(config.solver, solvers.both))


class _Solvers:
    """Opens the solvers of the layers of a run. The arguments are those of `choose_solver`."""

    def __init__(self, config: FastFinetuneConfig, samples: int, store: BatchStore, engine: Engine) -> None:
        self._config, self._samples, self._store, self._engine = config, samples, store, engine
        self._settings = LeastSquaresSettings(
            free=isinstance(config, AdaQuantConfig), update_bias=config.update_bias is not False, seed=config.fixed_seed
        )
        self._promised = 0  # bytes of the layers before, where all are open at the same time

    def least_squares(self, layer: LayerPlan, pool: _core.ThreadPool) -> LeastSquaresLayer | LeftOut:
        """The solver takes rows in place of moments, where these do not fit into memory."""
        engine = self._engine
        needed = least_squares_bytes(layer, engine.threads)
        free = engine.memory.free() - self._promised
        kept = None
        if needed > free and (rows := rows_that_fit(layer, free, engine.threads)):
            kept, needed = KeptRows(rows, thinned=True), rows_bytes(layer, rows, engine.threads)
        elif needed > free:
            inputs = layer.weight.rows.shape[1]
            return LeftOut(Reason.TOO_LARGE.why(inputs=inputs, needed=needed / _MIB, free=max(0, free) / _MIB))
        self._promised += needed if self._config.parallel else 0
        solver = LeastSquaresLayer(
            layer, self._settings, samples=self._samples, pool=pool, kept=kept, device=engine.solver_device
        )
        if kept is not None:
            text = f"moments would take too much memory: solved on {kept.most} rows or fewer"
            solver.messages.append((logging.INFO, f"layer {layer.node}: {text}"))
        return solver

    def gradient(self, layer: LayerPlan, pool: _core.ThreadPool) -> GradientLayer:
        """The published loop, alone or beside least squares."""
        return GradientLayer(layer, self._config, self._store, pool=pool, device=self._engine.solver_device)

    def both(self, layer: LayerPlan, pool: _core.ThreadPool) -> LayerSolver:
        """Least squares, the published loop, or both: what the layer and the memory ask for."""
        solved, in_steps = self.least_squares(layer, pool), is_trained_in_steps(layer, self._config)
        if isinstance(solved, LeftOut):
            in_place = not layer.shares and training_bytes(layer) <= self._engine.memory.free()
            if not in_place:
                return solved
            trained = self.gradient(layer, pool)
            trained.messages.append((logging.WARNING, f"layer {layer.node}: by the published loop: {solved.problem}"))
            trained.notes = (f"by the published loop: {solved.problem}",)
            return trained
        return _Both(layer.node, solved, self.gradient(layer, pool)) if in_steps else solved


def as_far_as_memory_goes(solver: OpenSolver) -> OpenSolver:
    """Opens what `solver` opens; a layer for which that takes more memory than there is, is left out."""

    def opened(layer: LayerPlan, pool: _core.ThreadPool) -> LayerSolver:
        try:
            return solver(layer, pool)
        except MemoryError as error:
            return LeftOut(out_of_memory(error))

    return opened


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
