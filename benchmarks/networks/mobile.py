"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381) and EfficientNet-B0 (Tan and Le 2019,
https://arxiv.org/abs/1905.11946): inverted residuals around depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from networks.graph import Graph, Tensor

__all__ = ["EFFICIENTNET_B0", "MOBILENET_V2", "efficientnet", "mobilenet"]

# (expansion, channels, blocks, stride of the first, kernel)
MOBILENET_V2 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 32, 3, 2, 3), (6, 64, 4, 2, 3), (6, 96, 3, 1, 3), (6, 160, 3, 2, 3),
    (6, 320, 1, 1, 3),
)  # fmt: skip
EFFICIENTNET_B0 = (
    (1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)  # fmt: skip
Stages = Sequence[tuple[int, int, int, int, int]]


def mobilenet(g: Graph, *, stages: Stages, head: int = 1280, classes: int = 1000) -> onnx.ModelProto:
    """Inverted residuals with Relu6."""
    x = _relu6(g, g.batch_norm(g.conv(g.input, 32, 3, stride=2)))
    for expansion, channels, blocks, first_stride, kernel in stages:
        for index in range(blocks):
            stride = 1 if index else first_stride
            y = x if expansion == 1 else _relu6(g, g.batch_norm(g.conv(x, expansion * x.channels)))
            y = _relu6(g, g.batch_norm(g.conv(y, y.channels, kernel, stride=stride, group=y.channels)))
            x = _added(g, x, g.batch_norm(g.conv(y, channels)))
    x = _relu6(g, g.batch_norm(g.conv(x, head)))
    return g.model(g.dense(g.pooled(x), classes))


def efficientnet(g: Graph, *, stages: Stages, head: int = 1280, classes: int = 1000) -> onnx.ModelProto:
    """Inverted residuals with SiLU and squeeze-and-excitation."""
    x = g.silu(g.batch_norm(g.conv(g.input, 32, 3, stride=2)))
    for expansion, channels, blocks, first_stride, kernel in stages:
        for index in range(blocks):
            stride = 1 if index else first_stride
            y = x if expansion == 1 else g.silu(g.batch_norm(g.conv(x, expansion * x.channels)))
            y = g.silu(g.batch_norm(g.conv(y, y.channels, kernel, stride=stride, group=y.channels)))
            squeezed = g.silu(g.conv(g.op("GlobalAveragePool", y), max(1, x.channels // 4), bias=True))
            y = g.op("Mul", y, g.op("Sigmoid", g.conv(squeezed, y.channels, bias=True)))
            x = _added(g, x, g.batch_norm(g.conv(y, channels)))
    x = g.silu(g.batch_norm(g.conv(x, head)))
    return g.model(g.dense(g.pooled(x), classes))


def _relu6(g: Graph, x: Tensor) -> Tensor:
    return g.op("Clip", x, np.array(0, np.float32), np.array(6, np.float32))


def _added(g: Graph, x: Tensor, y: Tensor) -> Tensor:
    """The sum with the shortcut, where shapes allow it."""
    return g.op("Add", x, y) if x.values.shape == y.values.shape else y
