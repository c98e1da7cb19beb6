"""ConvNeXt (Liu et al. 2022, https://arxiv.org/abs/2201.03545)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from networks.graph import Graph, Tensor

__all__ = ["convnext"]


def convnext(g: Graph, *, blocks: Sequence[int], width: int, classes: int = 1000) -> onnx.ModelProto:
    """So many blocks in each stage, the first with so many channels and each with twice those of the one before."""
    x = _norm_of_channels(g, g.conv(g.input, width, 4, stride=4, bias=True))
    for stage, count in enumerate(blocks):
        if stage:
            x = g.conv(_norm_of_channels(g, x), width << stage, 2, stride=2, bias=True)
        for _ in range(count):
            x = g.op("Add", x, _block(g, x))
    return g.model(g.dense(g.layer_norm(g.pooled(x)), classes))


def _block(g: Graph, x: Tensor) -> Tensor:
    y = g.op("Transpose", g.conv(x, x.channels, 7, group=x.channels, bias=True), perm=[0, 2, 3, 1])
    y = g.linear(g.gelu(g.linear(g.layer_norm(y), 4 * x.channels)), x.channels)
    y = g.op("Mul", y, np.float32(0.5) + g.small(x.channels))  # the layer scale
    return g.op("Transpose", y, perm=[0, 3, 1, 2])


def _norm_of_channels(g: Graph, x: Tensor) -> Tensor:
    return g.op("Transpose", g.layer_norm(g.op("Transpose", x, perm=[0, 2, 3, 1])), perm=[0, 3, 1, 2])
