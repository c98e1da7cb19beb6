"""A report as it is printed: the verdict first, in 80 columns of ASCII, whatever it is printed to."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from quark.onnx.report.weak_layers import WeakLayer

if TYPE_CHECKING:
    from quark.onnx.report.report import Report

__all__ = ["decibel_text", "short_text"]

_WIDTH = 80
_MOST_LINES = 5  # of warnings


def short_text(report: Report) -> str:
    """The report in about twenty lines."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Report) -> Iterator[str]:
    verdict = report.verdict
    yield from _wrapped(verdict.headline)
    if report.target is not None:
        yield from _wrapped(f"{str(report.target)[0].upper()}{str(report.target)[1:]}.")
    for sentence in verdict.sentences:
        yield from _wrapped(sentence)
    if verdict.weakest:
        yield ""
        yield "Weakest layers: SQNR in dB, quantized alone | in the whole model"
        for layer in verdict.weakest:
            yield from _weak_layer(layer)
    if verdict.advice:
        yield ""
        yield "What to do next"
        for number, text in enumerate(verdict.advice, 1):
            yield from _wrapped(text, first=f"  {number}. ", rest="     ")
    told = (*report.warnings, *report.ignored, *report.notes)
    if told:
        yield ""
        yield f"Warnings and notes ({len(told)})"
        for text in told[:_MOST_LINES]:
            yield from _wrapped(text, first="  - ", rest="    ")
        if len(told) > _MOST_LINES:
            where = "report.full()" if report.interface == "python" else "--report FILE.html"
            yield f"  - and {len(told) - _MOST_LINES} more in {where}"
    yield ""
    yield from _wrapped(_effort(report))
    yield from _wrapped(_more(report))


def _weak_layer(layer: WeakLayer) -> Iterator[str]:
    alone, whole = (decibel_text(value) for value in (layer.own_db, layer.output_db))
    why = f": {layer.why}" if layer.why else ""
    yield from _wrapped(f"{layer.name} ({layer.op_type}){why}", first=f"  {alone:>5} | {whole:>5}  ", rest=" " * 17)


def decibel_text(value: float) -> str:
    """One digit behind the point; "-" where nothing is known."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def _effort(report: Report) -> str:
    longest = sorted(report.phases.items(), key=lambda item: -item[1])[:3]
    phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in longest)
    memory = "" if report.peak_rss_mib is None else f"; peak memory of the process {report.peak_rss_mib:.0f} MiB"
    total = f"; {sum(report.phases.values()):.2f} s ({phases})" if report.phases else ""
    return f"{report.samples} calibration samples{total}{memory}"


def _more(report: Report) -> str:
    layers = f"{len(report.layers)} tuned, {len(report.skipped)} left" if report.layers or report.skipped else "none"
    where = {
        "python": "report.full(), report.to_html('report.html')",
        "command line": "--report FILE.html, --json",
    }
    return f"Layers: {layers}. All of it: {where[report.interface]}"


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False) or [first]
