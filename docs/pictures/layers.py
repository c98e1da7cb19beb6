"""The picture layers.svg: every layer of the digits network before and after AdaRound, from the report of one run."""

from __future__ import annotations

import numpy as np
from digits import quantized
from drawing import WIDTH, Drawing, Scale

from quark.onnx import AdaRoundConfig

STEP = 14  # between layers


def picture() -> str:
    """The picture as SVG."""
    report = quantized(AdaRoundConfig())[1]
    assert report.end_to_end is not None
    bottom = 84 + STEP * len(report.layers)
    drawing = Drawing("Every layer's output before and after AdaRound", bottom + 40)
    before, after = report.end_to_end.before, report.end_to_end.after
    drawing.text(14, 24, "SQNR of every layer's output, on held-out rows", "bold")
    drawing.dot(20, 41, "one-filled")
    drawing.text(30, 45, f"nearest (whole model {before.sqnr_db:.1f} dB)", "small one")
    drawing.dot(210, 41, "two-filled")
    drawing.text(220, 45, f"AdaRound (whole model {after.sqnr_db:.1f} dB)", "small two")
    ratios = [
        [10 * np.log10(layer.power[1] / error[1]) for error in (layer.before, layer.after)] for layer in report.layers
    ]
    x = Scale(15, 30, 92, WIDTH - 22)
    for value in (15, 20, 25, 30):
        drawing.line(x(value), 58, x(value), bottom, "rule")
        drawing.text(x(value), bottom + 16, f"{value} dB", "small", "middle")
    for index, (layer, (low, high)) in enumerate(zip(report.layers, ratios, strict=True)):
        y = 68 + STEP * index
        drawing.text(84, y + 4, layer.name, "small", "end")
        drawing.line(x(low), y, x(high), y, "faint")
        drawing.dot(x(low), y, "one-filled", 3)
        drawing.dot(x(high), y, "two-filled", 3)
    return drawing.svg()
