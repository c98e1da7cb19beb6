"""The layers that cost most, and why: from the measured parts of each layer's error, and what is known of its input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from quark.onnx.measures.layer_error import LayerError, decibels
from quark.onnx.report.activation_report import ActivationReport
from quark.onnx.report.layer_report import LayerReport

if TYPE_CHECKING:
    from quark.onnx.report.report import Report

__all__ = ["Cause", "WeakLayer", "weakest_layers"]

Cause = Literal["weight scale", "weight bits", "weights", "range", "outliers", "input", "inherited", "unknown"]

_CLIPPED = 1e-3  # of an activation's values beyond its range: from here on it is worth a word
_OUTLIERS = 8.0  # times farther out than 99.9 % of all values: so many of the steps hold next to nothing
_HALF = 0.5


@dataclass(frozen=True)
class WeakLayer:
    """A layer that loses much.

    Attributes:
        name, op_type: of its node.
        own_db: SQNR of its output where it alone is quantized; NaN where that was not measured.
        output_db: SQNR of its output in the quantized model.
        cause: what loses most.
        why: the same in words.
    """

    name: str
    op_type: str
    own_db: float
    output_db: float
    cause: Cause
    why: str


def weakest_layers(report: Report, count: int = 5) -> tuple[WeakLayer, ...]:
    """The layers that add the most error, the worst first; where that was not measured, those with the worst output."""
    if report.layer_errors:
        activations = {one.name: one for one in report.activations}
        tuned = {layer.name: layer for layer in report.layers}
        measured = [error for error in report.layer_errors if error.own > 0]
        worst = sorted(measured, key=lambda error: -error.own)[:count]
        return tuple(_weak_layer(error, activations.get(error.input), tuned.get(error.name)) for error in worst)
    known = [layer for layer in report.layers if _left(layer) > 0]
    return tuple(
        WeakLayer(layer.name, layer.op_type, math.nan, decibels(_left(layer)), "unknown", layer.reason)
        for layer in sorted(known, key=lambda layer: -_left(layer))[:count]
    )


def _left(layer: LayerReport) -> float:
    """Noise over signal of a tuned layer's output: on held-out rows, where there are any."""
    for index in (1, 0):
        if layer.power[index] > 0:
            return layer.after[index] / layer.power[index]
    return math.nan


def _weak_layer(error: LayerError, activation: ActivationReport | None, tuned: LayerReport | None) -> WeakLayer:
    causes = list(_causes(error, activation))
    words = [text for _, text in causes]
    if error.inherited > error.own:
        words.append(f"its input has {error.input_db:.1f} dB already")
    if tuned is not None and not tuned.accepted:
        words.append(f"finetuning left it: {tuned.reason}")
    return WeakLayer(error.name, error.op_type, error.own_db, error.output_db, causes[0][0], "; ".join(words))


def _causes(error: LayerError, activation: ActivationReport | None) -> Iterator[tuple[Cause, str]]:
    """What makes the layer's own error, the most first."""
    if not error.weights < _HALF * error.own:
        yield _cause_in_weights(error)
        return
    if activation is not None and activation.clipped > _CLIPPED:
        yield "range", f"{100 * activation.clipped:.2g} % of its input's values are cut off"
    elif activation is not None and activation.reach > _OUTLIERS * activation.usual > 0:
        far, near = activation.reach, activation.usual
        yield "outliers", f"few values stretch its input's range to {far:.3g}: 99.9 % lie within {near:.3g}"
    else:
        yield "input", "the steps of its input are coarse"


def _cause_in_weights(error: LayerError) -> tuple[Cause, str]:
    if error.weight_bits < 8:
        return "weight bits", f"its weights have {error.weight_bits} bits"
    if error.weight_scales == 1:
        return "weight scale", "its weights have one scale for all channels"
    return "weights", "rounding of its weights"
