"""From a solver that has its data to the solution of a layer, or the problem that prevented one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quark.onnx.plan.reasons import Reason, Why
from quark.onnx.plan.types import LayerPlan
from quark.onnx.solvers.solver import LayerInput, LayerSolver, Message, NoSolution, Solution

__all__ = ["Solved", "core_input", "out_of_memory", "solve"]


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


def out_of_memory(error: MemoryError) -> Why:
    """Why a layer is left: Python's own error says nothing."""
    return Reason.OUT_OF_MEMORY.why(problem=error or "there is no more to be had")


def solve(solver: LayerSolver, layer: LayerPlan, problem: str, started: float) -> Solved:
    """Solve, if there is no problem so far.

    Args:
        started: when work on the layer began, by time.perf_counter().
    """
    solution, solve_started = None, time.perf_counter()
    if not problem:
        try:
            solution = solver.solve()
        except NoSolution as error:
            problem = str(error)
        except MemoryError as error:
            problem = out_of_memory(error)
    ended = time.perf_counter()
    return Solved(layer, solution, problem, solver.messages, ended - started, ended - solve_started)
