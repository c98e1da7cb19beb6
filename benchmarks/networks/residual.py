"""ResNet-18 and -50 (He et al. 2015, https://arxiv.org/abs/1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from networks.graph import Graph, Tensor

__all__ = ["resnet"]


def resnet(
    g: Graph, *, blocks: Sequence[int], bottleneck: bool, width: int = 64, classes: int = 1000
) -> onnx.ModelProto:
    """So many blocks in each stage; a bottleneck has three convolutions in place of two."""
    x = g.op("Relu", g.batch_norm(g.conv(g.input, width, 7, stride=2)))
    x = g.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, count in enumerate(blocks):
        for index in range(count):
            stride = 2 if stage and not index else 1
            x = _block(g, x, width << stage, stride, bottleneck=bottleneck)
    return g.model(g.dense(g.pooled(x), classes))


def _block(g: Graph, x: Tensor, width: int, stride: int, *, bottleneck: bool) -> Tensor:
    if bottleneck:
        y = g.op("Relu", g.batch_norm(g.conv(x, width)))
        y = g.op("Relu", g.batch_norm(g.conv(y, width, 3, stride=stride)))
        y = g.batch_norm(g.conv(y, 4 * width))
    else:
        y = g.op("Relu", g.batch_norm(g.conv(x, width, 3, stride=stride)))
        y = g.batch_norm(g.conv(y, width, 3))
    if x.values.shape != y.values.shape:
        x = g.batch_norm(g.conv(x, y.channels, stride=stride))
    return g.op("Relu", g.op("Add", y, x))
