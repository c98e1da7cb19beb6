"""Quantize along a path of allocations until the target is reached with as few bits as can be told."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from quark.onnx.config.spec import QTensorConfig, QuantGranularity
from quark.onnx.mixed_precision.allocation import Choice, Option, Path
from quark.onnx.mixed_precision.formats import Formats
from quark.onnx.mixed_precision.target import Target
from quark.onnx.mixed_precision.target_judge import Judge, Judged
from quark.onnx.report.model_sizes import constant_bytes
from quark.onnx.report.report import Report
from quark.onnx.report.target_report import TargetReport, TargetTry

__all__ = ["Found", "Search", "formats_of"]

_MOST = 12  # tries
_NEAR = 1.01  # times the bits of the largest allocation that is too little: good enough
_MORE = 4.0  # times less error is tried where nothing tells how much
_SAFE = 0.9  # of the error that should do


@dataclass(frozen=True, eq=False)
class Found:
    """The best model so far."""

    model: onnx.ModelProto
    report: Report
    judged: Judged
    at: int
    tried: TargetTry


class Search:
    """Looks for the fewest bits.

    Args:
        path: the allocations.
        quantize: makes the model of one.
        judge: measures it.
        target: what is wanted.
        opset: as in `Formats`.
        keep: takes each model that is better than all before.
        began: when the call did, by time.monotonic.
    """

    def __init__(
        self,
        path: Path,
        quantize: Callable[[Formats], tuple[onnx.ModelProto, Report]],
        judge: Judge,
        target: Target,
        opset: int,
        keep: Callable[[onnx.ModelProto], None],
        began: float,
    ) -> None:
        self._path, self._quantize, self._judge, self._target = path, quantize, judge, target
        self._opset, self._keep, self._began = opset, keep, began
        self._tries = list[TargetTry]()
        self._best: Found | None = None
        self._failed = -1  # the longest way along the path that was too short
        self._known: dict[int, Judged] = {}

    def run(self) -> Found:
        """The best of all tries."""
        at: int | None = self._first()
        while at is not None:
            self._try(at)
            at = self._next(at)
        assert self._best is not None
        return self._best

    def report(self, held_out: bool) -> TargetReport:
        """What was done."""
        best = self._best
        assert best is not None
        chosen = list(zip(self._path.choices, self._path.at(best.at), strict=True))
        return TargetReport(
            goal=self._target.goal,
            wanted=self._judge.wanted,
            reached=best.judged.reached,
            samples=self._judge.samples,
            held_out=held_out,
            best=best.tried,
            tries=tuple(self._tries),
            weights=_counts([option for choice, option in chosen if choice.is_weight]),
            activations=_counts([option for choice, option in chosen if not choice.is_weight]),
            seconds=time.monotonic() - self._began,
        )

    def _first(self) -> int:
        """The fewest bits; of a budget the most bits that fit."""
        if self._target.max_bytes is None:
            return 0
        room = 8.0 * self._target.max_bytes
        return max((k for k in range(len(self._path) + 1) if self._path.bits(k) <= room), default=0)

    def _next(self, at: int) -> int | None:
        """Where to look next; None: nowhere."""
        best, end = self._best, len(self._path)
        assert best is not None
        passed = best.at if best.judged.reached else None
        if len(self._tries) >= _MOST or self._is_late():
            return None
        if self._target.max_bytes is not None:
            return self._smaller(at) if passed is None else None
        if passed is not None:
            if passed - self._failed <= 1 or self._path.bits(passed) <= _NEAR * self._path.bits(max(self._failed, 0)):
                return None if self._failed >= 0 or passed == 0 else 0
            high, low = self._path.error(max(self._failed, 0)), self._path.error(passed)
            middle = self._path.first_within(math.sqrt(max(high, 1e-30) * max(low, 1e-30)))
            return min(max(middle, self._failed + 1), passed - 1)
        if self._failed >= end:
            return None
        less = _SAFE * self._less(self._known[at])
        return min(end, max(self._failed + 1, self._path.first_within(self._path.error(at) * less)))

    def _less(self, judged: Judged) -> float:
        """The factor by which the error has to shrink, as far as the goal tells."""
        match self._target.goal:
            case "sqnr_db":
                return min(1.0, float(10.0 ** ((judged.measured - self._judge.wanted) / 10)))
            case "mse":
                return min(1.0, self._judge.wanted / judged.measured)
        return 1 / _MORE

    def _smaller(self, at: int) -> int | None:
        """A shorter way, by the bytes that were too many."""
        assert self._target.max_bytes is not None
        over = 8.0 * (self._tries[-1].bytes - self._target.max_bytes)
        shorter = [k for k in range(at) if self._path.bits(k) <= self._path.bits(at) - over]
        return max(shorter, default=0) if at > 0 else None

    def _is_late(self) -> bool:
        """Whether another try would end after the limit."""
        limit = self._target.time_limit
        return limit is not None and time.monotonic() - self._began + self._tries[-1].seconds > limit

    def _try(self, at: int) -> None:
        start = time.monotonic()
        options = self._path.at(at)
        model, report = self._quantize(formats_of(self._path.choices, options, self._opset))
        size = constant_bytes(model)
        judged = self._judge.judged(model, size)
        weights, activations = (
            _mean_bits(self._path.choices, options, is_weight=is_weight) for is_weight in (True, False)
        )
        tried = TargetTry(
            measured=judged.measured,
            reached=judged.reached,
            weight_bits=weights,
            activation_bits=activations,
            bytes=size,
            seconds=time.monotonic() - start,
        )
        self._tries.append(tried)
        self._known[at] = judged
        if not judged.reached:
            self._failed = max(self._failed, at)
        if self._is_better(judged, at):
            self._best = Found(model, report, judged, at, tried)
            self._keep(model)

    def _is_better(self, judged: Judged, at: int) -> bool:
        best = self._best
        if best is None or judged.reached != best.judged.reached:
            return best is None or judged.reached
        return at < best.at if judged.reached else judged.short < best.judged.short


def formats_of(choices: Sequence[Choice], options: Sequence[Option], opset: int) -> Formats:
    """What each tensor gets with one option of each choice."""
    weights, activations = dict[str, QTensorConfig](), dict[str, QTensorConfig | None]()
    for choice, option in zip(choices, options, strict=True):
        for tensor in choice.tensors:
            if not choice.is_weight:
                activations[tensor] = option.spec
            elif option.spec is not None:
                weights[tensor] = option.spec
    return Formats(weights, activations, opset)


def _mean_bits(choices: tuple[Choice, ...], options: list[Option], *, is_weight: bool) -> float:
    pairs = [(c, o) for c, o in zip(choices, options, strict=True) if c.is_weight == is_weight]
    elements = sum(choice.elements for choice, _ in pairs)
    return sum(option.bits for _, option in pairs) / elements if elements else 0.0


def _counts(options: list[Option]) -> dict[str, int]:
    names = [_name(option.spec) for option in options]
    return {name: names.count(name) for name in dict.fromkeys(sorted(names))}


def _name(spec: QTensorConfig | None) -> str:
    if spec is None:
        return "float"
    name = repr(spec.data_type)
    return (
        name
        if spec.quant_granularity is QuantGranularity.Tensor
        else f"{name} per {spec.quant_granularity.name.lower()}"
    )
