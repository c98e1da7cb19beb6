"""A layer trained by the published loops, AdaRound or AdaQuant, on mini-batches of its samples."""

from __future__ import annotations

import logging
import math

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.config.algorithm import AdaRoundConfig, FastFinetuneConfig
from quark.onnx.core_view.core_arguments import core_stage
from quark.onnx.errors import FinetuneError
from quark.onnx.inference.devices import falls_back
from quark.onnx.own_errors import of_the_caller
from quark.onnx.plan.types import LayerPlan
from quark.onnx.report.loss_curve import loss_curve
from quark.onnx.solvers.holdout import HOLDOUT
from quark.onnx.solvers.solver import (
    LayerInput,
    Message,
    NoSolution,
    Solution,
    device_failure,
    quantized_layer,
    told_by_the_core,
)
from quark.onnx.stores.batch_store import BatchStore

__all__ = ["GradientLayer"]

_STEP_POSITIONS = 1 << 12  # of a step's samples, where least squares is there besides
_Offer = tuple[NDArray[np.int32], NDArray[np.int32] | None]  # weight and bias of another solution


class GradientLayer:
    """One layer. (`LayerSolver`)

    With solver="gradient" the loop is as published: all samples are trained on, and judge; `update_bias=True` tunes the
    bias. Otherwise it stands beside least squares: every `HOLDOUT`-th sample only judges, if there are twice as many, a
    step looks at some of the output positions of its samples, and the bias is tuned unless `update_bias` is False.

    Args:
        store: keeps the layer's data; at memory level 2 in files, of which the core maps what it needs.
        pool: the threads of the loop.
        device: takes the steps and judges; None: the CPU.
    """

    def __init__(
        self,
        layer: LayerPlan,
        config: FastFinetuneConfig,
        store: BatchStore,
        *,
        pool: _core.ThreadPool,
        device: _core.Device | None = None,
    ) -> None:
        as_published = config.solver == "gradient"
        self._device = device
        self._plan, self._config, self._store, self._pool = layer, config, store, pool
        self._update_bias = bool(config.update_bias) if as_published else config.update_bias is not False
        self._holdout = 0 if as_published else HOLDOUT
        self._step_positions = 0 if as_published else _STEP_POSITIONS
        outputs, inputs = layer.weight.rows.shape
        self._data = _core.TrainingData(
            inputs,
            outputs // layer.groups,
            groups=layer.groups,
            conv=layer.conv.core_geometry() if layer.conv else None,
            holdout=self._holdout,
            x_scale=layer.input.scale,
            x_zero_point=layer.input.zero_point,
            stage=core_stage(layer.stage),
        )
        self.messages: list[Message] = []
        self.notes: tuple[str, ...] = ()  # for the report
        self._samples = self._values = 0
        self._shape: tuple[int, ...] | None = None

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        if y.size == 0 and self._holdout == 0:  # else the samples behind it would lose their turn to be held out
            return
        if self._shape not in (None, x.shape[1:]):
            raise ValueError(
                f"the gradient loops take samples of one shape, and the input's was {self._shape} before: "
                "solver='auto' and 'least_squares' take any"
            )
        self._shape = x.shape[1:]
        mapped = self._store.mapped
        self._data.add(mapped(x), mapped(y), None if x_float is None else mapped(x_float))
        self._samples += len(x)
        self._values += y.size

    def solve(self, offered: Solution | None = None) -> Solution:
        """Train. Where another solution of the layer is offered, the result is the better one, output by output."""
        config = self._config
        if self._samples == 0:
            raise NoSolution("too little data: its input is empty on every sample")
        holds_out = self._holdout > 0 and self._samples >= 2 * self._holdout
        held_out = self._samples // self._holdout if holds_out else 0
        fitted = self._samples - held_out
        batch_size = fitted if config.dynamic_batch else min(config.batch_size, fitted)
        if batch_size < config.batch_size:
            self._say(logging.WARNING, f"batch_size {config.batch_size} is {fitted}, all there are")
        window = config.num_batches if config.num_batches > 1 else max(1, config.num_iterations // 10)
        start = quantized_layer(self._plan)
        beta_start, beta_end = config.beta_range
        options = _core.GradientOptions(
            method="adaround" if isinstance(config, AdaRoundConfig) else "adaquant",
            update_bias=self._update_bias,
            batch_size=batch_size,
            step_positions=self._step_positions,
            iterations=config.num_iterations,
            learning_rate=self._learning_rate(start),
            reg_param=config.reg_param,
            warm_start=config.warm_start,
            beta_start=beta_start,
            beta_end=beta_end,
            drop_ratio=config.drop_ratio,
            window=window if config.early_stop else 0,
            patience=config.patience,
            seed=config.fixed_seed,
        )
        offer = None if offered is None else (offered.weight, offered.bias)
        trained = self._train(start, options, offer)
        self._say_losses(trained)
        outputs = len(self._plan.weight.rows)
        rows = self._values // (outputs * self._samples)
        how = f"{type(config).name}, {trained['iterations']} steps"
        if trained["stopped_early"]:
            how += ", stopped early"
        if offered is not None:
            how = f"{how} ({trained['trained']}); {offered.candidate} ({trained['improved'] - trained['trained']})"
        return Solution(
            weight=trained["weight"],
            bias=trained["bias"],
            improved=trained["improved"],
            candidate=how,
            before=trained["before"],
            after=trained["after"],
            power=trained["power"],
            rows=(fitted * rows, held_out * rows),
            losses=loss_curve(trained["losses"][: trained["iterations"]]),
            notes=(*self.notes, *(() if offered is None else offered.notes)),
        )

    def _train(
        self, start: _core.QuantizedLayer, options: _core.GradientOptions, offer: _Offer | None
    ) -> _core.TrainedLayer:
        """Trains on the device, as far as that can; what the CPU does in its place is noted for the report."""
        if self._device is not None:
            try:
                with told_by_the_core():
                    trained = self._data.train(start, options, self._pool, offered=offer, device=self._device)
                if not trained["on_device"]:
                    self._note_the_cpu("a device computes no softmax, and counts with 32 bits")
                return trained
            except MemoryError as error:
                self._note_the_cpu(f"the device has too little memory: {error}")
            except _core.DeviceError as error:
                if not falls_back():
                    raise device_failure(self._plan, error) from error
                self._note_the_cpu(f"the device failed: {error}")
                self._say(logging.WARNING, self.notes[-1])
        with told_by_the_core():
            return self._data.train(start, options, self._pool, offered=offer)

    def _note_the_cpu(self, why: str) -> None:
        self.notes += (f"trained on the CPU, as {why}",)

    def _learning_rate(self, start: _core.QuantizedLayer) -> float:
        """With `lr_adjust` it depends on the layer's error before training: the mean square over all elements."""
        adjust, usual = self._config.lr_adjust, self._config.learning_rate
        if adjust is None:
            return usual
        outputs = len(self._plan.weight.rows)
        with told_by_the_core():
            loss = self._data.start_loss(start, self._pool)
        error = float(self._plan.factor) ** 2 * loss / outputs
        if callable(adjust):
            given = of_the_caller(adjust)(error)  # what it raises ends the run
            try:
                rate = float(given)
            except (TypeError, ValueError, OverflowError) as problem:
                raise FinetuneError(f"lr_adjust gave no number for the error {error:.6g}: {problem}") from problem
            if not 0 < rate < math.inf:
                raise FinetuneError(f"lr_adjust gave the rate {rate:g} for the error {error:.6g}: give one above 0")
        else:
            threshold, new_rate = adjust
            rate = new_rate if error > threshold else usual
        if rate != usual:
            self._say(logging.INFO, f"learning rate {rate:g}, as its error is {error:.6g}")
        return rate

    def _say_losses(self, trained: _core.TrainedLayer) -> None:
        period, losses = self._config.log_period, trained["losses"][: trained["iterations"]]
        last = len(losses) - 1
        for step in (*range(period - 1, last, period), last):
            self._say(logging.INFO if step == last else logging.DEBUG, f"step {step + 1}, loss {losses[step]:.6g}")

    def _say(self, level: int, text: str) -> None:
        self.messages.append((level, f"layer {self._plan.node}: {text}"))
