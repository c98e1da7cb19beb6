"""What both solvers of a layer have in common: they are fed with data and give integers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.errors import FinetuneError
from quark.onnx.inference.devices import FALLBACK
from quark.onnx.plan.reasons import Why
from quark.onnx.plan.types import LayerPlan
from quark.onnx.report.loss_curve import LossCurve

__all__ = [
    "LayerInput",
    "LayerSolver",
    "LeftOut",
    "Message",
    "NoSolution",
    "OpenSolver",
    "SharedSolver",
    "Solution",
    "device_failure",
    "quantized_layer",
    "told_by_the_core",
]


_WeightArrays = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32], NDArray[np.int32]]
Message = tuple[int, str]  # its level in logging, and the text
LayerInput = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.int8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """New integers of a layer, and how good they are. Pairs are (fitted, held-out).

    Attributes:
        weight: (outputs, K) int32.
        bias: (outputs,) int32; None when it stays.
        improved: outputs that got better on held-out data, or on all where none is held out; the others are as they
            were. 0: leave the layer.
        candidate: how the integers were found.
        before, after, power: as in `LayerReport`, of the output divided by the layer's factor.
        rows: output positions that were used.
        losses: of a training loop, of the output divided by the layer's factor; none where there was no loop.
        notes: as in `LayerReport`.
    """

    weight: NDArray[np.int32]
    bias: NDArray[np.int32] | None
    improved: int
    candidate: str
    before: tuple[float, float]
    after: tuple[float, float]
    power: tuple[float, float]
    rows: tuple[int, int]
    losses: LossCurve = ()
    notes: tuple[str, ...] = ()


class NoSolution(Exception):
    """The data allows none; says why. The layer stays as it is, unlike with an error of the caller's own functions."""


@contextlib.contextmanager
def told_by_the_core() -> Iterator[None]:
    """Around calls of the core alone: a ValueError is about the layer's data.

    Raises:
        NoSolution: in its place.
    """
    try:
        yield
    except ValueError as error:
        raise NoSolution(str(error)) from error


def device_failure(layer: LayerPlan, error: _core.DeviceError) -> FinetuneError:
    """What is raised where a device failed in the middle of a layer, and the CPU is not to take its place."""
    return FinetuneError(
        f"layer {layer.node}: the device of optim_device failed: {error}. Tune with optim_device='cpu', or set the "
        f"environment variable {FALLBACK}=1, with which the CPU goes on"
    )


class LayerSolver(Protocol):
    """One layer from data to integers.

    Attributes:
        messages: for the log. They are only gathered here, as solvers run in threads: these would wait for ever for a
            lock of logging that the main thread holds, and where Ctrl-C hits it, it may never give it back.
    """

    messages: list[Message]

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        """The next samples: x as the layer's quantized input gives it, y the float output; x_float the float graph's
        input, where steps mix it in. All C-contiguous.

        Raises:
            ValueError: they do not fit the layer.
        """

    def solve(self) -> Solution:
        """Find integers.

        Raises:
            NoSolution: the data allows none; says why.
            MemoryError: there is not enough memory.
        """


class SharedSolver(LayerSolver, Protocol):
    """One of several layers that share a weight."""

    def feed_input(self, x: LayerInput) -> None:
        """The next samples.

        Raises:
            ValueError: they do not fit the layer.
        """

    def join(self, other: Any) -> None:
        """Take over the data of another layer's solver."""


class LeftOut:
    """A layer that is not solved. (`LayerSolver`)

    Args:
        problem: why not.
    """

    def __init__(self, problem: Why) -> None:
        self.problem = problem
        self.messages: list[Message] = []

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        """Takes no data."""

    def solve(self) -> Solution:
        raise NoSolution(self.problem)


OpenSolver = Callable[[LayerPlan, _core.ThreadPool], LayerSolver]  # of a layer; the pool is what it works with


def quantized_layer(layer: LayerPlan) -> _core.QuantizedLayer:
    """The layer as the core takes it, its output divided by its factor."""
    weight, bias, factor = layer.weight, layer.bias, np.float32(layer.factor)
    tunes_bias = bias is not None and bias.initializer is not None
    return _core.QuantizedLayer(
        weight.rows,
        weight.rows_q,
        weight.scale,
        weight.zero_point,
        qmin=weight.qmin,
        qmax=weight.qmax,
        bias=bias.real / factor if bias is not None else None,
        bias_scale=bias.scale / factor if bias is not None and tunes_bias else None,
        bias_qmin=bias.qmin if bias is not None else 0,
        bias_qmax=bias.qmax if bias is not None else 0,
    )
