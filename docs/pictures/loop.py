"""The picture loop.svg: the loss of AdaRound's loop on the first layer of the digits network, beside least squares.

The loss is that of the 250 images of calibration, one at a time; both ends are measured on 1500 other images.
"""

from __future__ import annotations

import numpy as np
from digits import FIRST, float_model, outputs, quantized
from drawing import WIDTH, Drawing, Scale

from quark.onnx import AdaRoundConfig

LEAST, MOST = 1e-3, 1.0  # of the errors that are drawn


def picture() -> str:
    """The picture as SVG."""
    trained, report = quantized(AdaRoundConfig(solver="gradient"))
    models = {"nearest": quantized()[0], "the loop": trained, "least squares": quantized(AdaRoundConfig())[0]}
    exact = outputs(float_model(), "evaluation").astype(np.float64)
    errors = {
        name: float(np.mean((outputs(model, "evaluation") - exact) ** 2, axis=(0, 2, 3)).sum())
        for name, model in models.items()
    }
    curve = next(layer.losses for layer in report.layers if layer.name == FIRST)
    drawing = Drawing("The loss of AdaRound's loop, step by step", 340)
    drawing.text(14, 24, "AdaRound's loop on one layer", "bold")
    drawing.text(14, 42, "squared error of the layer's output", "small")
    x, y = Scale(0, curve[-1][0], 52, WIDTH - 24), Scale(np.log10(LEAST), np.log10(MOST), 290, 54)
    for error in (1e-3, 1e-2, 1e-1, 1.0):
        drawing.line(52, y(np.log10(error)), WIDTH - 24, y(np.log10(error)), "rule")
        drawing.text(46, y(np.log10(error)) + 4, f"{error:g}", "small", "end")
    for step in range(0, 1001, 200):
        drawing.text(x(step), 306, str(step), "small", "middle")
    drawing.text(WIDTH / 2, 324, "steps", "small", "middle")
    drawing.path([(x(step), y(np.log10(loss))) for step, loss in curve], "two")
    drawing.text(x(220), y(np.log10(2e-3)), "weights between integers", "small two")
    drawing.text(x(620), y(np.log10(5.5e-3)), "forced to integers", "small two")
    for name, kind, shift in (("nearest", "one", -6), ("the loop", "two", -6), ("least squares", "faint", 14)):
        level = y(np.log10(errors[name]))
        drawing.line(52, level, WIDTH - 24, level, f"{kind} dots")
        drawing.text(
            58,
            level + shift,
            f"{name}, on other images: {errors[name]:.3f}",
            f"small {kind if kind != 'faint' else ''}",
        )
    return drawing.svg()
