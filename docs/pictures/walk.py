"""The picture walk.svg: the float and the quantized model side by side, and what a layer is solved from."""

from __future__ import annotations

from drawing import Drawing

BOX, GAP, LEFT = (72, 34), 28, 24
FLOAT, SOLVER, QUANTIZED = 84, 168, 252  # the upper edges of the three rows


def picture() -> str:
    """The picture as SVG."""
    drawing = Drawing("The walk through the layers", 320)
    drawing.text(14, 24, "The walk, at the third of four layers", "bold")
    lefts = [LEFT + index * (BOX[0] + GAP) for index in range(4)]
    for top, title, kind in ((FLOAT, "float model", "one"), (QUANTIZED, "quantized model", "two")):
        drawing.text(LEFT, top - 12 if top == FLOAT else top + 54, title, f"small bold {kind}")
        for index, left in enumerate(lefts):
            drawing.box(left, top, *BOX)
            drawing.text(left + BOX[0] / 2, top + 21, f"layer {index + 1}", "small", "middle")
            if index:
                drawing.arrow(left - GAP, top + BOX[1] / 2, left, top + BOX[1] / 2, "faint")
    for left in lefts[:2]:
        drawing.text(left + BOX[0] / 2, QUANTIZED - 8, "finetuned", "small two", "middle")
    third, middle = lefts[2], lefts[2] + BOX[0] / 2
    border = third - GAP / 2
    drawing.line(border, 52, border, QUANTIZED + 52, "axis dots")
    drawing.text(border - 4, 60, "the frontier", "small", "end")
    drawing.dot(border, FLOAT + BOX[1] / 2, "one-filled", 5)
    drawing.dot(border, QUANTIZED + BOX[1] / 2, "two-filled", 5)
    drawing.box(third - 6, SOLVER, BOX[0] + 12, BOX[1])
    drawing.text(middle, SOLVER + 21, "the solver", "small bold", "middle")
    target = third + BOX[0] + GAP / 2
    drawing.path([(target, FLOAT + BOX[1] / 2), (target, SOLVER + 17), (target - 7, SOLVER + 17)], "one")
    drawing.arrow(target, SOLVER + 17, third + BOX[0] + 6, SOLVER + 17, "one")
    drawing.text(target + 5, SOLVER - 12, "y: what it", "small one")
    drawing.text(target + 5, SOLVER + 2, "should give", "small one")
    drawing.path([(border, QUANTIZED + BOX[1] / 2), (border, SOLVER + 17)], "two")
    drawing.arrow(border, SOLVER + 17, third - 6, SOLVER + 17, "two")
    drawing.text(border - 6, SOLVER + 14, "x: what the", "small two", "end")
    drawing.text(border - 6, SOLVER + 28, "finetuned layers feed it", "small two", "end")
    drawing.arrow(middle, SOLVER + BOX[1], middle, QUANTIZED, "two")
    drawing.text(middle + 6, SOLVER + 58, "integers", "small two")
    return drawing.svg()
