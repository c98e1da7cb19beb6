"""The two figures of each layer that charts of a report compare."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quark.onnx.measures.layer_error import decibels

if TYPE_CHECKING:
    from quark.onnx.report.layer_report import LayerReport
    from quark.onnx.report.report import Report

__all__ = ["SqnrRow", "sqnr_rows"]


@dataclass(frozen=True)
class SqnrRow:
    """One layer.

    Attributes:
        name, op_type: of its node.
        first, second: SQNR in dB; NaN where nothing is known.
        labels: what they are.
        changed: finetuning changed the layer; None where there was none.
        reason: why it did not.
    """

    name: str
    op_type: str
    first: float
    second: float
    labels: tuple[str, str]
    changed: bool | None = None
    reason: str = ""


def sqnr_rows(report: Report) -> tuple[SqnrRow, ...]:
    """Return a row per layer: tuned ones show before and after, on held-out rows where there are any. In a plain run
    each shows what it does alone and in the quantized model.
    """
    if report.layers:
        return tuple(_tuned(layer) for layer in report.layers)
    labels = ("quantized alone", "in the quantized model")
    return tuple(
        SqnrRow(error.name, error.op_type, error.own_db, error.output_db, labels) for error in report.layer_errors
    )


def _tuned(layer: LayerReport) -> SqnrRow:
    before = after = math.nan
    for index in (0, 1):  # held-out rows last
        if layer.power[index] > 0:
            before, after = (decibels(pair[index] / layer.power[index]) for pair in (layer.before, layer.after))
    return SqnrRow(layer.name, layer.op_type, before, after, ("before", "after"), layer.accepted, layer.reason)
