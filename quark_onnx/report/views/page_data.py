"""The figures of a report as a page draws them: positions in percent, texts ready to be read."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quark.onnx.report.views.short_text import decibel_text
from quark.onnx.report.views.sqnr_rows import SqnrRow, sqnr_rows

if TYPE_CHECKING:
    from quark.onnx.measures.deviation import Deviation
    from quark.onnx.report.activation_report import ActivationReport
    from quark.onnx.report.layer_report import LayerReport
    from quark.onnx.report.report import Report

__all__ = ["PageData", "page_data"]

_FLOOR, _CEILING = -10.0, 60.0  # dB: what is beyond them stands at the edge
_HEIGHT = 40.0  # of a picture's own units; its width is 100


@dataclass(frozen=True)
class LayerRow:
    """One layer in the chart of SQNR. Positions are percent of the chart's width; NaN where there is no figure."""

    name: str
    op_type: str
    before: float
    after: float
    text: str
    state: str  # "better", "left" or "measured", which has a color each
    reason: str

    @property
    def low(self) -> float:
        """Where the bar begins."""
        return min(self.before, self.after)

    @property
    def length(self) -> float:
        """The bar is this long."""
        return abs(self.after - self.before)


@dataclass(frozen=True)
class Curve:
    """The losses of a layer, as points of a polyline in a box of 100 by 40."""

    name: str
    points: str
    first: str
    last: str
    steps: int


@dataclass(frozen=True)
class Histogram:
    """An activation's values, as a path in a box of 100 by 40, and the chosen range in percent of its width."""

    name: str
    path: str
    range_left: float
    range_width: float
    text: str
    cut: str


@dataclass(frozen=True)
class PhaseRow:
    """A phase of the run."""

    name: str
    seconds: str
    share: float
    memory: str


@dataclass(frozen=True)
class OutputRow:
    """One state of the whole model, or one output of it."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class PageData:
    """Everything that the template fills in besides the report itself."""

    layers: tuple[LayerRow, ...]
    ticks: tuple[tuple[float, str], ...]
    rejected: tuple[tuple[str, str, str], ...]
    curves: tuple[Curve, ...]
    histograms: tuple[Histogram, ...]
    phases: tuple[PhaseRow, ...]
    outputs: tuple[OutputRow, ...]
    configuration: str


def page_data(report: Report) -> PageData:
    """The figures of a report."""
    rows = sqnr_rows(report)
    scale = _DecibelScale(rows)
    left = [(layer.name, layer.op_type, layer.reason) for layer in report.layers if not layer.accepted]
    return PageData(
        layers=tuple(_layer_row(row, scale) for row in rows),
        ticks=scale.ticks(),
        rejected=(*left, *((layer.node, layer.op_type, layer.reason) for layer in report.skipped)),
        curves=tuple(_curve(layer) for layer in report.layers if layer.losses),
        histograms=tuple(map(_histogram, report.activations)),
        phases=_phases(report),
        outputs=_outputs(report),
        configuration=json.dumps(dict(report.configuration), indent=2) if report.configuration else "",
    )


class _DecibelScale:
    """The scale from dB to percent of the chart's width, of all layers."""

    def __init__(self, rows: Sequence[SqnrRow]) -> None:
        values = [value for row in rows for value in (row.first, row.second)]
        known = [min(max(value, _FLOOR), _CEILING) for value in values if not math.isnan(value)] or [0.0, 30.0]
        self._low = min(0.0, 10 * math.floor(min(known) / 10))
        self._high = max(self._low + 10, 10 * math.ceil(max(known) / 10))

    def at(self, value: float) -> float:
        if math.isnan(value):
            return math.nan
        inside = min(max(value, self._low), self._high)
        return round(100 * (inside - self._low) / (self._high - self._low), 2)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        steps = range(int(self._low), int(self._high) + 1, 10)
        return tuple((self.at(step), f"{step}") for step in steps)


def _layer_row(row: SqnrRow, scale: _DecibelScale) -> LayerRow:
    first, second = decibel_text(row.first), decibel_text(row.second)
    if row.changed is None:
        state, text = "measured", f"{first} alone, {second} in the model"
    elif row.changed:
        state, text = "better", f"{first} → {second} dB"
    else:
        state, text = "left", f"{first} dB"
    return LayerRow(row.name, row.op_type, scale.at(row.first), scale.at(row.second), text, state, row.reason)


def _curve(layer: LayerReport) -> Curve:
    steps, losses = zip(*layer.losses, strict=True)
    logs = [math.log10(max(loss, 1e-30)) for loss in losses]
    low, high, last = min(logs), max(logs), max(steps)
    points = " ".join(
        f"{100 * step / last:.1f},{_height_of(value, low, high):.1f}" for step, value in zip(steps, logs, strict=True)
    )
    return Curve(layer.name, points, f"{losses[0]:.3g}", f"{losses[-1]:.3g}", last)


def _height_of(value: float, low: float, high: float) -> float:
    """The distance from the top of the box: the largest value lies there."""
    return 2 + (_HEIGHT - 4) * (high - value) / (high - low) if high > low else _HEIGHT / 2


def _histogram(activation: ActivationReport) -> Histogram:
    low, high = min(activation.low, activation.range_low), max(activation.high, activation.range_high)
    span = high - low or 1.0

    def at(value: float) -> float:
        return 100 * (value - low) / span

    most = math.log1p(max(activation.counts, default=0)) or 1.0
    path = [f"M{at(activation.low):.1f} {_HEIGHT:g}"]
    for index, count in enumerate(activation.counts, 1):
        end = at(activation.low + index * activation.bin_width)
        path.append(f"V{_HEIGHT - (_HEIGHT - 2) * math.log1p(count) / most:.1f}H{end:.1f}")
    path.append(f"V{_HEIGHT:g}Z")
    left, right = at(activation.range_low), at(activation.range_high)
    seen = f"{activation.low:.3g} to {activation.high:.3g}"
    chosen = f"{activation.range_low:.3g} to {activation.range_high:.3g}"
    cut = f"{100 * activation.clipped:.2g} % cut off" if activation.clipped else ""
    text = f"seen {seen}, range {chosen}"
    return Histogram(activation.name, "".join(path), round(left, 1), round(right - left, 1), text, cut)


def _phases(report: Report) -> tuple[PhaseRow, ...]:
    longest = max(report.phases.values(), default=0.0) or 1.0
    return tuple(
        PhaseRow(
            name,
            f"{seconds:.2f} s",
            round(100 * seconds / longest, 1),
            f"{report.memory[name]:.0f} MiB" if name in report.memory else "",
        )
        for name, seconds in report.phases.items()
    )


def _outputs(report: Report) -> tuple[OutputRow, ...]:
    result = report.end_to_end
    if result is None:
        return ()
    states: Sequence[tuple[str, Deviation | None]] = [
        ("before", result.before),
        ("after", result.after),
        ("before, onnxruntime's default", result.before_default),
        ("after, onnxruntime's default", result.after_default),
    ]
    if result.before == result.after:
        states = [("as defined", result.after), ("onnxruntime's default", result.after_default)]
    rows = []
    for name, state in states:
        if state is None:
            rows.append(OutputRow(name, ("does not load", "", "", "")))
            continue
        agreement = "" if state.agreement is None else f"{100 * state.agreement:.1f} %"
        figures = (f"{state.sqnr_db:.1f}", f"{100 * state.error:.3g} %", f"{state.l2:.4g}", agreement)
        rows.append(OutputRow(name, figures))
        if len(state.outputs) > 1:
            rows.extend(
                OutputRow(
                    f"{name}: {one.name}", (f"{one.sqnr_db:.1f}", f"{100 * one.error:.3g} %", f"{one.l2:.4g}", "")
                )
                for one in state.outputs
            )
    return tuple(rows)
