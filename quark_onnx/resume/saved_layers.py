"""Solved layers that are kept: their solvers are not asked again."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import cast

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.plan.types import LayerPlan
from quark.onnx.resume.records import Record, Records
from quark.onnx.solvers.solver import (
    LayerInput,
    LayerSolver,
    LeftOut,
    Message,
    NoSolution,
    OpenSolver,
    SharedSolver,
    Solution,
)

__all__ = ["SavedLayers"]

_PAIRS = ("before", "after", "power", "rows")


class SavedLayers:
    """Solutions by layer. That of layers that share a weight is one.

    Args:
        records: where they are.
        run: tells this run, with its data, from others.

    Attributes:
        taken: how many layers were not solved, as their solution was there.
    """

    def __init__(self, records: Records, run: str) -> None:
        self._records, self._run = records, run
        self._begun = Counter[str]()
        self.taken = 0

    def solver(self, stage: str, opener: OpenSolver) -> OpenSolver:
        """Opens what gives a layer's kept solution; or what `opener` opens, whose solution is kept then.

        Args:
            stage: of the run: each has its own solution of a layer, and so has one that begins a second time.
        """
        self._begun[stage] += 1
        stage = f"{stage}{self._begun[stage]}"

        def opened(layer: LayerPlan, pool: _core.ThreadPool) -> LayerSolver:
            start = _digest_of_start(layer)
            name = f"{stage}-{hashlib.sha256(layer.weight.initializer.encode()).hexdigest()[:16]}"
            record = self._records.get(name)
            about = {"run": self._run, "weight": layer.weight.initializer, "start": start}
            if record is not None and all(record.fields.get(key) == value for key, value in about.items()):
                self.taken += 1
                return _Kept(record)
            solver = opener(layer, pool)
            return solver if isinstance(solver, LeftOut) else _Keeping(solver, self._records, name, about)

        return opened


class _Kept:
    """A layer that was solved before. (`SharedSolver`)"""

    def __init__(self, record: Record) -> None:
        self._record = record
        self.messages: list[Message] = []

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        """Needs no data."""

    def feed_input(self, x: LayerInput) -> None:
        """Needs no data."""

    def join(self, other: SharedSolver) -> None:
        """Needs no data."""

    def solve(self) -> Solution:
        fields, arrays = self._record.fields, self._record.arrays
        if "problem" in fields:
            raise NoSolution(fields["problem"])
        return Solution(
            weight=arrays["weight"],
            bias=arrays.get("bias"),
            improved=fields["improved"],
            candidate=fields["candidate"],
            losses=tuple((step, loss) for step, loss in fields["losses"]),
            notes=tuple(fields["notes"]),
            **{name: tuple(fields[name]) for name in _PAIRS},
        )


class _Keeping:
    """A layer whose solution is kept. (`SharedSolver`, as far as its solver is one)"""

    def __init__(self, solver: LayerSolver, records: Records, name: str, about: dict[str, str]) -> None:
        self._solver, self._records, self._name, self._about = solver, records, name, about
        self.messages = solver.messages

    def feed(self, x: LayerInput, y: NDArray[np.float32], x_float: NDArray[np.float32] | None = None) -> None:
        self._solver.feed(x, y, x_float)

    def feed_input(self, x: LayerInput) -> None:
        cast(SharedSolver, self._solver).feed_input(x)

    def join(self, other: SharedSolver) -> None:
        cast(SharedSolver, self._solver).join(other._solver if isinstance(other, _Keeping) else other)

    def solve(self) -> Solution:
        try:
            solution = self._solver.solve()
        except NoSolution as error:
            self._records.put(self._name, Record({**self._about, "problem": str(error)}))
            raise
        arrays = {"weight": solution.weight}
        if solution.bias is not None:
            arrays["bias"] = solution.bias
        fields = {name: getattr(solution, name) for name in ("improved", "candidate", "losses", "notes", *_PAIRS)}
        self._records.put(self._name, Record({**self._about, **fields}, arrays))
        return solution


def _digest_of_start(layer: LayerPlan) -> str:
    """A digest of what a layer starts from, the same in the same run; if not, the solution is that of another layer."""
    digest, weight = hashlib.sha256(), layer.weight
    for array in (weight.rows, weight.rows_q, weight.scale, weight.zero_point):
        digest.update(np.ascontiguousarray(array).data)
    if layer.bias is not None:
        digest.update(np.ascontiguousarray(layer.bias.real).data)
    return digest.hexdigest()
