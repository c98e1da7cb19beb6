"""The picture rounding.svg: one filter of the digits network, rounded to nearest and by AdaRound.

The integers are chosen on the 250 images of calibration; the errors are those of 1500 other images, where the filter
sees anything but black.
"""

from __future__ import annotations

import numpy as np
from digits import float_model, float_weights, outputs, patches, quantized, weights
from drawing import WIDTH, Drawing, Scale

from quark.onnx import AdaRoundConfig

FILTER = 8  # of 16: the one that gains most
REACH, BINS = 1.0, 60  # of the errors that are drawn


def picture() -> str:
    """The picture as SVG."""
    plain, tuned = quantized()[0], quantized(AdaRoundConfig())[0]
    drawing = Drawing("Rounding to nearest, and rounding for the output", 470)
    (nearest, scales), (chosen, _) = weights(plain), weights(tuned)
    _filter(drawing, float_weights()[FILTER] / scales[FILTER], nearest[FILTER], chosen[FILTER])
    inked = patches("evaluation").any(axis=1)
    exact, *given = (outputs(model, "evaluation")[:, FILTER].ravel()[inked] for model in (float_model(), plain, tuned))
    errors = [values - exact for values in given]
    _errors(drawing, errors, float(np.mean(exact.astype(np.float64) ** 2)))
    return drawing.svg()


def _filter(drawing: Drawing, wanted: np.ndarray, nearest: np.ndarray, chosen: np.ndarray) -> None:
    drawing.text(14, 24, "Nine weights of a filter, in steps of 4 bits", "bold")
    y = Scale(-8, 8, 226, 62)
    for step in range(-8, 9):
        drawing.line(40, y(step), WIDTH - 14, y(step), "rule")
    for step in (-8, -4, 0, 4, 7):
        drawing.text(34, y(step) + 4, f"{step}", "small", "end")
    drawing.dot(46, 41, "faint", 5)
    drawing.text(56, 45, "float", "small")
    drawing.dot(108, 41, "one-filled")
    drawing.text(118, 45, "nearest", "small one")
    drawing.dot(184, 41, "two-filled")
    drawing.text(194, 45, "AdaRound, where it differs", "small two")
    for index, value in enumerate(wanted):
        x = 64 + 40 * index
        drawing.dot(x, y(value), "faint", 5)
        drawing.dot(x, y(nearest[index]), "one-filled")
        if chosen[index] != nearest[index]:
            drawing.dot(x, y(chosen[index]), "two-filled")


def _errors(drawing: Drawing, errors: list[np.ndarray], power: float) -> None:
    drawing.text(14, 262, "Errors of its output, on images it has not seen", "bold")
    counts = [np.histogram(error, BINS, (-REACH, REACH))[0] / error.size for error in errors]
    x, y = Scale(-REACH, REACH, 24, WIDTH - 14), Scale(0, max(map(np.max, counts)), 424, 306)
    for kind, count in zip(("one", "two"), counts, strict=True):
        drawing.histogram(count, x, y, f"{kind} {kind}-filled see-through")
    drawing.line(24, 424, WIDTH - 14, 424, "axis")
    for value in (-1, -0.5, 0, 0.5, 1):
        drawing.text(x(value), 440, f"{value:g}", "small", "middle")
    drawing.text(WIDTH / 2, 458, "error of the output", "small", "middle")
    for kind, name, error, line in zip(("one", "two"), ("nearest", "AdaRound"), errors, (282, 299), strict=True):
        mean, ratio = float(error.mean()), power / float(np.mean(error.astype(np.float64) ** 2))
        words = f"{name}: {10 * np.log10(ratio):.1f} dB, mean {mean:+.2f}"
        drawing.text(24, line, words, f"small {kind}")
