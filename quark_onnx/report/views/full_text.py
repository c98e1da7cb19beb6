"""A report in full: every table, as wide as the terminal."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quark.onnx.layers.equalise import PairReport
from quark.onnx.measures.deviation import Deviation, OutputDeviation
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.report.views.short_text import decibel_text

if TYPE_CHECKING:
    from quark.onnx.report.report import EndToEnd, Report

__all__ = ["full_text"]

_USUAL = 100  # columns where there is no terminal


def full_text(report: Report, width: int | None = None) -> str:
    """Every table and every line that the report has to tell.

    Args:
        width: in columns; None: as the terminal has.
    """
    text = io.StringIO()
    columns = width or shutil.get_terminal_size((_USUAL, 24)).columns
    # In a notebook, rich would show what it is to write to the file.
    console = Console(file=text, width=columns, emoji=False, force_jupyter=False, force_terminal=False)
    console.print(report.verdict.headline, markup=False)
    for sentence in report.verdict.sentences:
        console.print(sentence, markup=False)
    if report.pairs:
        console.print(_pair_table(report.pairs))
    if report.corrections:
        console.print(_layer_table("Bias correction", report.corrections))
    for layer in report.uncorrected:
        console.print(f"bias left as it is: {layer.node} ({layer.op_type}): {layer.reason}", markup=False)
    if report.layers:
        console.print(_layer_table("Layers", report.layers))
    for layer in report.skipped:
        console.print(f"left as it is: {layer.node} ({layer.op_type}): {layer.reason}", markup=False)
    if report.layer_errors:
        console.print(_error_table(report.layer_errors))
    if report.end_to_end is not None:
        console.print(_end_to_end_table(report.end_to_end))
    for line in (*report.ignored, *report.warnings, *report.notes):
        console.print(line, markup=False)
    phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in report.phases.items())
    memory = "" if report.peak_rss_mib is None else f"; peak memory of the process {report.peak_rss_mib:.0f} MiB"
    console.print(f"{report.samples} calibration samples; {phases}{memory}", markup=False)
    return text.getvalue()


def _table(title: str) -> Table:
    """A table in ASCII, which any output can encode, and as Markdown has it."""
    return Table(title=title, title_justify="left", box=box.MARKDOWN)


def _error_table(errors: tuple[LayerError, ...]) -> Table:
    table = _table("Where errors come from (SQNR in dB)")
    table.add_column("layer", overflow="fold")
    table.add_column("op", overflow="fold")
    for name in ("input", "alone", "output"):
        table.add_column(name, justify="right")
    for error in errors:
        figures = map(decibel_text, (error.input_db, error.own_db, error.output_db))
        table.add_row(*map(Text, (error.name, error.op_type, *figures)))
    return table


def _relative(error: tuple[float, float], power: tuple[float, float], index: int) -> str:
    """The error of a layer's output as SQNR in dB."""
    if not (error[index] > 0 and power[index] > 0):
        return "-"
    return f"{10 * math.log10(power[index] / error[index]):.1f}"


def _pair_table(pairs: tuple[PairReport, ...]) -> Table:
    table = _table("Cross-layer equalisation: channels between two layers")
    for name in ("layer", "next layer", "result"):
        table.add_column(name, overflow="fold")
    for pair in pairs:
        smallest, largest = pair.factors
        result = f"{pair.scaled} of {pair.channels} channels, factors {smallest:.3g} to {largest:.3g}"
        result += "".join(f", {clip} as Relu and Min" for clip in pair.clips)
        table.add_row(*map(Text, (pair.head, pair.tail, f"unchanged: {pair.reason}" if pair.reason else result)))
    return table


def _layer_table(what: str, layers: tuple[LayerReport, ...]) -> Table:
    table = _table(f"{what}: SQNR of the output before its activation, dB (fitted rows | held-out rows)")
    for name in ("layer", "op", "inputs", "outputs", "before", "after", "result", "s"):
        left = name in ("layer", "op", "result")
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    for layer in layers:
        before, after = (
            " | ".join(_relative(error, layer.power, i) for i in range(2)) for error in (layer.before, layer.after)
        )
        result = f"{layer.improved} outputs: {layer.candidate}" if layer.accepted else f"unchanged: {layer.reason}"
        result += "".join(f"; {note}" for note in layer.notes)
        cells = (layer.name, layer.op_type, layer.inputs, layer.outputs, before, after, result, f"{layer.seconds:.2f}")
        table.add_row(*(Text(str(cell)) for cell in cells))  # names and reasons may look like markup
    return table


def _end_to_end_table(result: EndToEnd) -> Table:
    kind = "held-out" if result.held_out else "fitted"
    title = f"Whole model against the {result.reference}, {result.samples} {kind} samples"
    table = _table(title)
    for name in ("", "L2", "SQNR dB", "error %", "agreement"):
        table.add_column(name, justify="right", overflow="fold")
    rows = [
        ("before", result.before),
        ("after", result.after),
        ("before, onnxruntime's default optimisation", result.before_default),
        ("after, onnxruntime's default optimisation", result.after_default),
    ]
    if result.before == result.after:
        rows = [("as defined", result.after), ("onnxruntime's default optimisation", result.after_default)]
    for name, deviation in rows:
        if deviation is None:
            table.add_row(name, "-", "-", "-", "-")
            continue
        agreement = "-" if deviation.agreement is None else f"{100 * deviation.agreement:.1f} %"
        table.add_row(
            name, f"{deviation.l2:.4g}", f"{deviation.sqnr_db:.1f}", f"{100 * deviation.error:.3g}", agreement
        )
        for label, one in _single_outputs(deviation):
            table.add_row(Text(label), f"{one.l2:.4g}", f"{one.sqnr_db:.1f}", f"{100 * one.error:.3g}", "")
    return table


def _single_outputs(deviation: Deviation) -> Iterator[tuple[str, OutputDeviation]]:
    """What there is to say besides the whole: outputs where there are several, and parts."""
    for output in deviation.outputs:
        if len(deviation.outputs) > 1:
            yield output.name, output
        for part in output.parts:
            yield f"{output.name}: {part.name}", part
