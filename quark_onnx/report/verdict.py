"""What a report comes to: what was gained, whether it is good, which layers cost most, what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quark.onnx.measures.grades import Grade, grade_of
from quark.onnx.report.advice import advice
from quark.onnx.report.weak_layers import WeakLayer, weakest_layers

if TYPE_CHECKING:
    from quark.onnx.measures.deviation import Deviation
    from quark.onnx.report.report import EndToEnd, Report

__all__ = ["Grade", "Verdict", "verdict_of"]

_NAMES = {"adaround": "AdaRound", "adaquant": "AdaQuant"}


@dataclass(frozen=True)
class Verdict:
    """The whole report in a few lines.

    Attributes:
        grade: "good": the error is below 1 % of the outputs' variance and 95 % of the samples (or all but one) keep
            their class; "fair": 10 % and 75 %; "poor": more; "unknown": nothing was compared.
        headline: one line.
        sentences: what was gained, and what the model has become.
        weakest: the layers that cost most, the worst first.
        advice: what to try next, the most promising first.
    """

    grade: Grade
    headline: str
    sentences: tuple[str, ...]
    weakest: tuple[WeakLayer, ...]
    advice: tuple[str, ...]


def verdict_of(report: Report) -> Verdict:
    """The verdict on a report."""
    weakest = weakest_layers(report)
    result = report.end_to_end
    grade: Grade = "unknown" if result is None else grade_of(result.after, result.samples)
    return Verdict(
        grade=grade,
        headline=_headline(grade, report),
        sentences=tuple(_sentences(report)),
        weakest=weakest,
        advice=tuple(advice(report, grade, weakest)),
    )


def _headline(grade: Grade, report: Report) -> str:
    result = report.end_to_end
    if result is None:
        return "Not compared with the float model: see the warnings"
    after = result.after
    agreement = "" if after.agreement is None else f", agreement {100 * after.agreement:.1f} %"
    of = "held-out samples" if result.held_out else "samples that it was fitted to"
    gained = f", and {_done(report)} did not help" if result.is_worse else ""
    return f"{grade.capitalize()}{gained}: SQNR {after.sqnr_db:.1f} dB{agreement} of {result.samples} {of}"


def _done(report: Report) -> str:
    return _NAMES.get(report.algorithm or "", "bias correction")


def _sentences(report: Report) -> Iterator[str]:
    result = report.end_to_end
    if result is not None and (report.layers or report.corrections):
        yield _gain(report, result)
    elif result is not None:
        yield "This is plain quantization: nothing was finetuned."
    if result is not None and result.after_default is not None and _differ(result.after, result.after_default):
        yield f"As onnxruntime runs it by default: SQNR {result.after_default.sqnr_db:.1f} dB."
    sizes = report.sizes
    if sizes is not None:
        left = f", {sizes.float_layers} left in float" if sizes.float_layers else ""
        yield (
            f"Constants: {_bytes(sizes.float_bytes)} before, {_bytes(sizes.quantized_bytes)} after; "
            f"{sizes.integer_layers} layers with integer weights{left}."
        )


def _gain(report: Report, result: EndToEnd) -> str:
    done = _done(report)
    done = done[:1].upper() + done[1:]
    layers = report.layers or report.corrections
    changed = sum(layer.accepted for layer in layers)
    seconds = sum(report.phases.get(phase, 0.0) for phase in ("finetune", "bias correction"))
    moved = f"{done} moved the SQNR from {result.before.sqnr_db:.1f} to {result.after.sqnr_db:.1f} dB"
    if result.before.agreement != result.after.agreement:
        assert result.before.agreement is not None
        assert result.after.agreement is not None
        moved += f", the agreement from {100 * result.before.agreement:.1f} to {100 * result.after.agreement:.1f} %"
    if result.before == result.after:
        moved = f"{done} changed nothing"
    return f"{moved}, in {seconds:.2f} s; it changed {changed} of {len(layers)} layers."


def _differ(one: Deviation, other: Deviation) -> bool:
    return abs(one.sqnr_db - other.sqnr_db) > 0.5


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
