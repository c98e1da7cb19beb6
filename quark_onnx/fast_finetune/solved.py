"""From a solver that has its data to the solution of a layer, or the problem that prevented one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quark.onnx.errors import FinetuneError
from quark.onnx.fast_finetune.solver import LayerInput, LayerSolver, Message, NoSolution, Solution
from quark.onnx.plan.types import LayerPlan

__all__ = ["Solved", "core_input", "solve"]


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer with its solution, or the problem that prevented one."""

    layer: LayerPlan
    solution: Solution | None
    problem: str
    messages: Sequence[Message]
    seconds: float
    solve_seconds: float


def core_input(x: NDArray[np.generic], layer: LayerPlan) -> LayerInput:
    """What feeds a layer, as solvers take it.

    Raises:
        ValueError: its shape does not fit the layer.
    """
    if x.dtype not in (np.float32, np.uint8, np.int8):
        x = x.astype(np.float32)
    return np.ascontiguousarray(layer.arrangement.input(x))


def solve(solver: LayerSolver, layer: LayerPlan, problem: str, started: float) -> Solved:
    """Solve, if there is no problem so far.

    Args:
        started: when work on the layer began, by time.perf_counter().

    Raises:
        FinetuneError: out of memory.
    """
    solution, solve_started = None, time.perf_counter()
    if not problem:
        try:
            solution = solver.solve()
        except NoSolution as error:
            problem = str(error)
        except MemoryError as error:
            outputs, inputs = layer.weight.rows.shape
            raise FinetuneError(f"layer {layer.node!r} (K = {inputs}, {outputs} outputs): out of memory") from error
    ended = time.perf_counter()
    return Solved(layer, solution, problem, solver.messages, ended - started, ended - solve_started)
