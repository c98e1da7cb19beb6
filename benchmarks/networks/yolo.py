"""A detector of the shape of YOLOv8n: C2f blocks, a pyramid of three sizes, boxes as distributions."""

from __future__ import annotations

import numpy as np
import onnx

from networks.graph import Graph, Tensor

__all__ = ["yolo"]

_BINS = 16  # of each side of a box


def yolo(g: Graph, *, width: int = 16, depth: int = 1, classes: int = 80) -> onnx.ModelProto:
    """(N, 4 + classes, boxes). The first convolution has so many channels; depth is that of the smallest blocks."""
    x = _conv(g, _conv(g, g.input, width, 3, stride=2), 2 * width, 3, stride=2)
    x = _c2f(g, x, 2 * width, depth, shortcut=True)
    fine = _c2f(g, _conv(g, x, 4 * width, 3, stride=2), 4 * width, 2 * depth, shortcut=True)
    middle = _c2f(g, _conv(g, fine, 8 * width, 3, stride=2), 8 * width, 2 * depth, shortcut=True)
    coarse = _c2f(g, _conv(g, middle, 16 * width, 3, stride=2), 16 * width, depth, shortcut=True)
    coarse = _pyramid_pool(g, coarse)
    up = _c2f(g, g.op("Concat", g.resize(coarse, 2), middle, axis=1), 8 * width, depth)
    first = _c2f(g, g.op("Concat", g.resize(up, 2), fine, axis=1), 4 * width, depth)
    down = g.op("Concat", _conv(g, first, 4 * width, 3, stride=2), up, axis=1)
    second = _c2f(g, down, 8 * width, depth)
    down = g.op("Concat", _conv(g, second, 8 * width, 3, stride=2), coarse, axis=1)
    third = _c2f(g, down, 16 * width, depth)
    heads = [_head(g, x, max(4 * width, 4 * _BINS), max(4 * width, classes), classes) for x in (first, second, third)]
    boxes, scores = g.ops(
        "Split", g.op("Concat", *heads, axis=2), np.array([4 * _BINS, classes], np.int64), outputs=2, axis=1
    )
    sides = g.op("Transpose", g.reshape(boxes, 0, 4, _BINS, -1), perm=[0, 2, 1, 3])
    bins = np.arange(_BINS, dtype=np.float32).reshape(1, _BINS, 1, 1)
    mean = g.op("Conv", g.op("Softmax", sides, axis=1), bins, kernel_shape=[1, 1])
    return g.model(g.op("Concat", g.reshape(mean, 0, 4, -1), g.op("Sigmoid", scores), axis=1))


def _conv(g: Graph, x: Tensor, outputs: int, kernel: int = 1, *, stride: int = 1) -> Tensor:
    return g.silu(g.batch_norm(g.conv(x, outputs, kernel, stride=stride)))


def _c2f(g: Graph, x: Tensor, outputs: int, depth: int, *, shortcut: bool = False) -> Tensor:
    half = outputs // 2
    parts = g.ops("Split", _conv(g, x, outputs), np.array([half, half], np.int64), outputs=2, axis=1)
    for _ in range(depth):
        y = _conv(g, _conv(g, parts[-1], half, 3), half, 3)
        parts.append(g.op("Add", parts[-1], y) if shortcut else y)
    return _conv(g, g.op("Concat", *parts, axis=1), outputs)


def _pyramid_pool(g: Graph, x: Tensor) -> Tensor:
    parts = [_conv(g, x, x.channels // 2)]
    for _ in range(3):
        parts.append(g.op("MaxPool", parts[-1], kernel_shape=[5, 5], pads=[2, 2, 2, 2]))
    return _conv(g, g.op("Concat", *parts, axis=1), x.channels)


def _head(g: Graph, x: Tensor, box_width: int, class_width: int, classes: int) -> Tensor:
    boxes = g.conv(_conv(g, _conv(g, x, box_width, 3), box_width, 3), 4 * _BINS, bias=True)
    scores = g.conv(_conv(g, _conv(g, x, class_width, 3), class_width, 3), classes, bias=True)
    return g.reshape(g.op("Concat", boxes, scores, axis=1), 0, 4 * _BINS + classes, -1)
