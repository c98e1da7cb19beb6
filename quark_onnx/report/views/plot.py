"""A report as a figure of matplotlib, for those who want to change it or put it into a paper."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from quark.onnx.report.views.sqnr_rows import SqnrRow, sqnr_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from quark.onnx.report.report import Report

__all__ = ["figure"]

_ROW_INCHES, _CURVES_INCHES = 0.25, 3.0


def figure(report: Report) -> Figure:
    """SQNR of every layer before and after, and below it the losses of training, where there are some.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which keeps every figure for the rest of the process
    except ImportError as error:
        raise ImportError("Report.plot() needs matplotlib: pip install 'quark-onnx[plot]'") from error
    rows, curves = sqnr_rows(report), [layer for layer in report.layers if layer.losses]
    heights = [1.5 + _ROW_INCHES * max(len(rows), 1)] + [_CURVES_INCHES] * bool(curves)
    drawn = Figure(figsize=(8, sum(heights)), layout="constrained")
    axes = drawn.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    drawn.suptitle(report.verdict.headline)
    _draw_layers(axes[0], rows)
    if curves:
        for layer in curves:
            steps, losses = zip(*layer.losses, strict=True)
            axes[1].plot(steps, losses, label=layer.name, linewidth=1)
        axes[1].set(xlabel="step", ylabel="loss", yscale="log")
        if len(curves) <= 12:
            axes[1].legend(fontsize="small", ncols=2)
    return drawn


def _draw_layers(axes: Axes, rows: tuple[SqnrRow, ...]) -> None:
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        if not math.isnan(row.first):
            axes.plot([row.first, row.second], [place, place], color="0.7", linewidth=3, zorder=1)
    names = rows[0].labels if rows else ("before", "after")
    axes.scatter([row.first for row in rows], places, color="0.5", label=names[0], zorder=2)
    axes.scatter([row.second for row in rows], places, color="tab:blue", label=names[1], zorder=3)
    axes.set(xlabel="SQNR of the layer's output, dB", yticks=list(places), yticklabels=[row.name for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize="small")
