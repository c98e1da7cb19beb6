"""A layer solved by least squares from its moments: the Python side of csrc/least_squares/least_squares.c."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.inference.devices import falls_back
from quark.onnx.plan.reasons import Reason, Why
from quark.onnx.plan.types import LayerPlan
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

__all__ = ["KeptRows", "LeastSquaresLayer", "LeastSquaresSettings", "rows_to_keep", "rows_to_use"]


@dataclass(frozen=True)
class LeastSquaresSettings:
    """How each layer is solved.

    Attributes:
        free: any integer may be reached (AdaQuant), else floor or ceil (AdaRound).
        update_bias: the bias takes its best value.
        seed: of the choice of rows.
        damping: candidates, relative to the mean diagonal of the Gram matrix; held-out rows choose among them.
        max_sweeps: of coordinate descent per candidate.
    """

    free: bool
    update_bias: bool
    seed: int
    damping: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    max_sweeps: int = 20


def rows_to_use(inputs: int) -> int:
    """How many rows of a layer's data are used: many times its K inputs, where the moments hardly move any more."""
    return max(65536, 128 * inputs)


@dataclass(frozen=True)
class KeptRows:
    """Fitted rows that are kept as they are, in place of moments.

    Attributes:
        most: rows.
        thinned: of more rows than that, every second, fourth, ... is kept; else moments take the place of all.
    """

    most: int
    thinned: bool = False


def rows_to_keep(inputs: int) -> KeptRows:
    """Up to a third of the K inputs: with more, moments take less time (decision 0028). And up to 4096, so that no
    single factorisation keeps an interruption waiting."""
    return KeptRows(min(inputs // 3, 1 << 12))


class LeastSquaresLayer:
    """One layer. (`LayerSolver`)

    Args:
        samples: how many will be fed; to a layer that shares its weight by `feed_input`.
        kept: rows; as many as make sense where it is None.
        device: makes the moments; None: the CPU.
    """

    def __init__(
        self,
        layer: LayerPlan,
        settings: LeastSquaresSettings,
        *,
        samples: int,
        pool: _core.ThreadPool,
        kept: KeptRows | None = None,
        device: _core.Device | None = None,
    ) -> None:
        self._plan, self._settings, self._pool = layer, settings, pool
        self.messages: list[Message] = []
        outputs, inputs = layer.weight.rows.shape
        kept = rows_to_keep(inputs) if kept is None else kept
        self._core = _core.Layer(
            inputs,
            outputs // layer.groups,
            samples,
            rows_to_use(inputs),
            groups=layer.groups,
            conv=layer.conv.core_geometry() if layer.conv else None,
            holdout=HOLDOUT,
            seed=settings.seed,
            x_scale=layer.input.scale,
            x_zero_point=layer.input.zero_point,
            target=not layer.shares,
            kept=kept.most,
            thinned=kept.thinned,
            device=None if device is None or device.is_lost else device,
        )
        self._device = device
        self._problem: Why | None = None  # that ended the gathering of data

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:  # noqa: ARG002
        self._feed(x, y)

    def feed_input(self, x: LayerInput) -> None:
        """The next samples of a layer that shares its weight."""
        self._feed(x, None)

    def _feed(self, x: LayerInput, y: NDArray[np.float32] | None) -> None:
        if self._problem is None:
            with self._device_may_fail():
                self._core.feed(x, y, self._pool)

    @contextlib.contextmanager
    def _device_may_fail(self) -> Iterator[None]:
        """A layer whose device fails has no moments any more, and is left; those behind it use the CPU.

        Raises:
            FinetuneError: the device failed, and the environment does not allow to go on.
        """
        try:
            yield
        except _core.DeviceError as error:
            if not falls_back():
                raise device_failure(self._plan, error) from error
            self._problem = Reason.DEVICE.why(problem=error)
            self.messages.append((logging.WARNING, f"layer {self._plan.node}: {self._problem}"))

    def join(self, other: LeastSquaresLayer) -> None:
        """Take over the data of another layer with the same weight."""
        self._problem = self._problem or other._problem
        if self._problem is None:
            with self._device_may_fail():
                self._core.join(other._core, self._pool)

    def solve(self) -> Solution:
        settings = self._settings
        solved: _core.LeastSquaresResult | None = None
        with told_by_the_core(), self._device_may_fail():
            if self._problem is None:
                solved = self._core.least_squares(
                    quantized_layer(self._plan),
                    self._pool,
                    update_bias=settings.update_bias,
                    free=settings.free,
                    damping=np.array(settings.damping),
                    max_sweeps=settings.max_sweeps,
                )
        if solved is None:
            raise NoSolution(self._problem)
        return Solution(
            weight=solved["weight"],
            bias=solved["bias"],
            improved=solved["improved"],
            candidate=solved["candidate"],
            before=solved["before"],
            after=solved["after"],
            power=solved["power"],
            rows=solved["rows"],
            notes=(*_notes(solved), *self._device_notes()),
        )

    def _device_notes(self) -> Iterator[str]:
        """What the CPU did although a device was asked for."""
        if self._device is None:
            return
        done = self._core.moments_by
        why = "" if done == "device" else f"moments on the CPU, as {_WHY_NOT[done]}; "
        yield f"{why}integers sought on the CPU"


# Layer.moments_by, in words.
_WHY_NOT = {
    "cpu": "the device failed before",
    "few rows": "few rows are solved as they are",
    "phases": "a strided ConvTranspose is cut into phases",
    "memory": "the device has too little memory",
}


def _notes(solved: _core.LeastSquaresResult) -> Iterator[str]:
    """What was done in another way than from moments of all rows, in float32, for all outputs."""
    if solved["one_row_in"] == 1:
        yield "solved on its rows"
    elif solved["one_row_in"]:
        yield f"solved on one row in {solved['one_row_in']}"
    if solved["float64_factor"]:
        yield "float64 factor, as float32 was not enough"
    if solved["pilot_alone"]:
        yield "next to nothing gained on a part of the outputs: the others got their best bias alone"
