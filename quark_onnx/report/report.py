"""The report of one quantization: what was done, how well, in what time and memory."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from quark.onnx.layers.equalise import PairReport
from quark.onnx.plan.types import SkippedLayer
from quark.onnx.report.deviation import Deviation, OutputDeviation
from quark.onnx.report.layer_report import LayerReport

__all__ = ["EndToEnd", "Report"]


@dataclass(frozen=True)
class EndToEnd:
    """The whole model against the float model, with onnxruntime's graph optimisation off and at its default.

    Attributes:
        reference: "float model"; "reference model" where that of ref_model_path took its place.
        samples: how many calibration samples were compared.
        held_out: whether they took no part in ranges, scales, candidates and integers. Otherwise, with fewer than 40
            samples, the figures are optimistic.
        before, after: of bias correction and finetuning, optimisation off: the model's own definition. The same where
            nothing was done after quantization.
        before_default, after_default: with onnxruntime's default optimisation, which users run; None where onnxruntime
            cannot load the optimised model, as with 2-bit weights.
    """

    reference: str
    samples: int
    held_out: bool
    before: Deviation
    after: Deviation
    before_default: Deviation | None
    after_default: Deviation | None


@dataclass(frozen=True)
class Report:
    """What `ModelQuantizer.quantize_model` and `finetune` did. `print(report)` shows it, `to_json` keeps it.

    Attributes:
        algorithm: "adaround", "adaquant" or None.
        samples: calibration samples seen, those set apart to compare whole models included.
        layers: one entry per layer that was considered.
        skipped: layers that were left out from the start, with the reason.
        pairs: of layers that CLEConfig found, with what was done to them.
        corrections: what BiasCorrectionConfig did to each layer's bias.
        uncorrected: layers whose bias it left from the start, with the reason.
        ignored: options that were set and mean nothing here, with the reason.
        warnings: what the user should look at; each was logged as well.
        notes: what was done in another way than usual and needs no action, one line each.
        end_to_end: None where the quantized model cannot be compared, as a warning says.
        phases: seconds per phase.
        peak_rss_mib: the most memory the process has had since it began, whatever used it: libraries, this package, and
            what the reader and the rest of the program hold; None where the system does not tell.
    """

    algorithm: str | None
    samples: int
    layers: tuple[LayerReport, ...] = ()
    skipped: tuple[SkippedLayer, ...] = ()
    pairs: tuple[PairReport, ...] = ()
    corrections: tuple[LayerReport, ...] = ()
    uncorrected: tuple[SkippedLayer, ...] = ()
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    end_to_end: EndToEnd | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    peak_rss_mib: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number is None."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON; written to `path` too, if given."""
        text = json.dumps(self.to_dict(), indent=1)
        if path is not None:
            Path(path).write_text(text + "\n", encoding="utf-8")
        return text

    def __str__(self) -> str:
        text = io.StringIO()
        # In a notebook, rich would show what it is to write to the file.
        console = Console(file=text, width=140, emoji=False, force_jupyter=False, force_terminal=False)
        if self.end_to_end is not None:
            console.print(_verdict(self.end_to_end), markup=False)
        if self.pairs:
            console.print(_pair_table(self.pairs))
        if self.corrections:
            console.print(_layer_table("Bias correction", self.corrections))
        for layer in self.uncorrected:
            console.print(f"bias left as it is: {layer.node} ({layer.op_type}): {layer.reason}", markup=False)
        if self.layers:
            console.print(_layer_table("Layers", self.layers))
        for layer in self.skipped:
            console.print(f"left as it is: {layer.node} ({layer.op_type}): {layer.reason}", markup=False)
        if self.end_to_end is not None:
            console.print(_end_to_end_table(self.end_to_end))
        for line in (*self.ignored, *self.warnings, *self.notes):
            console.print(line, markup=False)
        phases = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.phases.items())
        memory = "" if self.peak_rss_mib is None else f"; peak memory of the process {self.peak_rss_mib:.0f} MiB"
        console.print(f"{self.samples} calibration samples; {phases}{memory}", markup=False)
        return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _relative(error: tuple[float, float], power: tuple[float, float], index: int) -> str:
    """The error of a layer's output as SQNR in dB."""
    if not (error[index] > 0 and power[index] > 0):
        return "-"
    return f"{10 * math.log10(power[index] / error[index]):.1f}"


def _pair_table(pairs: tuple[PairReport, ...]) -> Table:
    table = Table(title="Cross-layer equalisation: channels between two layers", title_justify="left")
    for name in ("layer", "next layer", "result"):
        table.add_column(name, overflow="fold")
    for pair in pairs:
        smallest, largest = pair.factors
        result = f"{pair.scaled} of {pair.channels} channels, factors {smallest:.3g} to {largest:.3g}"
        result += "".join(f", {clip} as Relu and Min" for clip in pair.clips)
        table.add_row(*map(Text, (pair.head, pair.tail, f"unchanged: {pair.reason}" if pair.reason else result)))
    return table


def _layer_table(what: str, layers: tuple[LayerReport, ...]) -> Table:
    table = Table(
        title=f"{what}: SQNR of the output before its activation, dB (fitted rows | held-out rows)",
        title_justify="left",
    )
    for name, justify in (("layer", "left"), ("op", "left"), ("K", "right"), ("O", "right"), ("before", "right"),
                          ("after", "right"), ("result", "left"), ("s", "right")):  # fmt: skip
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for layer in layers:
        before, after = (
            " | ".join(_relative(error, layer.power, i) for i in range(2)) for error in (layer.before, layer.after)
        )
        result = f"{layer.improved} outputs: {layer.candidate}" if layer.accepted else f"unchanged: {layer.reason}"
        cells = (layer.name, layer.op_type, layer.inputs, layer.outputs, before, after, result, f"{layer.seconds:.2f}")
        table.add_row(*(Text(str(cell)) for cell in cells))  # names and reasons may look like markup
    return table


def _verdict(result: EndToEnd) -> str:
    """The whole report in a line."""
    after = result.after
    agreement = "" if after.agreement is None else f", agreement {100 * after.agreement:.1f} %"
    of = "held-out samples" if result.held_out else "samples that were fitted to as well (optimistic)"
    return f"SQNR {after.sqnr_db:.1f} dB{agreement} of {result.samples} {of}"


def _end_to_end_table(result: EndToEnd) -> Table:
    kind = "held-out" if result.held_out else "fitted"
    title = f"Whole model against the {result.reference}, {result.samples} {kind} samples"
    table = Table(title=title, title_justify="left")
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
