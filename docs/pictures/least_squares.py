"""The picture least_squares.svg: the error of one filter over two of its weights.

The filter is that of rounding.svg. Its other seven weights have the integers that AdaRound chose, its bias is the best
one; the error is that of the 250 images of calibration.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from digits import float_weights, patches, quantized, weights
from drawing import Drawing, Scale
from rounding import FILTER

from quark.onnx import AdaRoundConfig

WIDE, HIGH = 330, 280  # of what is drawn, where a step is as long on both axes


def picture() -> str:
    """The picture as SVG."""
    (nearest, scales), (chosen, _) = weights(quantized()[0]), weights(quantized(AdaRoundConfig())[0])
    wanted, nearest, chosen = float_weights()[FILTER] / scales[FILTER], nearest[FILTER], chosen[FILTER]
    rows = patches("calibration")
    gram = np.cov(rows.T, bias=True) * scales[FILTER] ** 2  # of one step of each weight, the best bias put in
    pair = list(_pair(gram, nearest != chosen))
    others = [index for index in range(9) if index not in pair]
    inner = gram[np.ix_(pair, pair)]
    away = gram[np.ix_(pair, others)] @ (chosen[others] - wanted[others])
    best = wanted[pair] - np.linalg.solve(inner, away)

    def excess(point: np.ndarray) -> float:
        return float((point - best) @ inner @ (point - best))

    drawing = Drawing("The error of a layer over two of its weights", 420)
    drawing.text(14, 24, "Error of a filter's output over two of its weights", "bold")
    corner = np.floor(wanted[pair])
    x = Scale(corner[0] - 0.8, corner[0] + 1.8, 70, 70 + WIDE)
    y = Scale(corner[1] - 0.8, corner[1] + 1.4, 50 + HIGH, 50)
    drawing.box(x(corner[0]), y(corner[1] + 1), x(1) - x(0), y(0) - y(1))
    named = (("one", "nearest", nearest[pair].astype(float)), ("two", "AdaRound", chosen[pair].astype(float)))
    for kind, _, point in named:
        drawing.path([(x(a), y(b)) for a, b in _ellipse(inner, best, excess(point))], kind, closed=True)
    for first in (corner[0], corner[0] + 1):
        drawing.text(x(first), 66 + HIGH, f"{first:.0f}", "small", "middle")
        for second in (corner[1], corner[1] + 1):
            drawing.dot(x(first), y(second), "faint", 4)
    for second in (corner[1], corner[1] + 1):
        drawing.text(62, y(second) + 4, f"{second:.0f}", "small", "end")
    drawing.dot(x(wanted[pair[0]]), y(wanted[pair[1]]), "faint", 6)
    drawing.text(x(wanted[pair[0]]) + 10, y(wanted[pair[1]]) + 4, "float weights", "small")
    drawing.dot(x(best[0]), y(best[1]), "two", 5)
    drawing.text(x(best[0]) + 10, y(best[1]) + 4, "least error", "small two")
    for kind, name, point in named:
        drawing.dot(x(point[0]), y(point[1]), f"{kind}-filled", 5)
        drawing.text(x(point[0]) + 10, y(point[1]) + (-8 if kind == "one" else 16), name, f"small bold {kind}")
    drawing.text(70 + WIDE / 2, 84 + HIGH, f"weight {pair[0] + 1}, in steps", "small", "middle")
    drawing.text(14, 42, f"weight {pair[1] + 1}, in steps", "small")
    worse = excess(named[0][2]) / excess(named[1][2])
    drawing.text(
        14, 106 + HIGH, f"The ellipses are lines of equal error: nearest's is {worse:.1f} times AdaRound's.", "small"
    )
    drawing.text(14, 122 + HIGH, "In the box are the integers that AdaRound may choose.", "small")
    return drawing.svg()


def _pair(gram: np.ndarray, differs: np.ndarray) -> tuple[int, int]:
    """The two weights that move the output most alike, out of those that were not rounded to nearest."""
    moved = np.flatnonzero(differs)
    moved = moved if len(moved) > 1 else np.arange(9)
    return max(combinations(moved.tolist(), 2), key=lambda pair: float(gram[pair]))


def _ellipse(inner: np.ndarray, centre: np.ndarray, level: float) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angles), np.sin(angles)])
    points = centre[:, None] + np.sqrt(level) * np.linalg.solve(np.linalg.cholesky(inner).T, circle)
    return [(float(a), float(b)) for a, b in points.T]
