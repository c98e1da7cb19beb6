"""Networks whose output is an image: UNet (Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597), EDSR (Lim et al.
2017, https://arxiv.org/abs/1707.02921), and a segmentation of depthwise separable convolutions.
"""

from __future__ import annotations

import numpy as np
import onnx

from networks.graph import Graph, Tensor

__all__ = ["edsr", "segmentation", "unet"]


def unet(g: Graph, *, width: int = 32, levels: int = 4, classes: int = 2) -> onnx.ModelProto:
    """Two convolutions at each of `levels + 1` sizes on the way down, and two on the way up."""
    x, kept = _double(g, g.input, width), []
    for level in range(1, levels + 1):
        kept.append(x)
        x = _double(g, g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), width << level)
    for skip in reversed(kept):
        weight = g.drawn((skip.channels, x.channels, 2, 2), x.channels).swapaxes(0, 1)
        x = g.op("ConvTranspose", x, np.ascontiguousarray(weight), kernel_shape=[2, 2], strides=[2, 2])
        x = _double(g, g.op("Concat", skip, x, axis=1), skip.channels)
    return g.model(g.conv(x, classes, bias=True))


def _double(g: Graph, x: Tensor, width: int) -> Tensor:
    for _ in range(2):
        x = g.op("Relu", g.batch_norm(g.conv(x, width, 3)))
    return x


def edsr(g: Graph, *, width: int = 64, blocks: int = 16, factor: int = 2) -> onnx.ModelProto:
    """Super-resolution without normalization."""
    first = x = g.conv(g.input, width, 3, bias=True)
    for _ in range(blocks):
        y = g.conv(g.op("Relu", g.conv(x, width, 3, bias=True)), width, 3, bias=True)
        x = g.op("Add", x, g.op("Mul", y, np.array(0.1, np.float32)))
    x = g.op("Add", first, g.conv(x, width, 3, bias=True))
    x = g.op("DepthToSpace", g.conv(x, width * factor**2, 3, bias=True), blocksize=factor, mode="CRD")
    return g.model(g.conv(x, 3, 3, bias=True))


def segmentation(g: Graph, *, width: int = 16, classes: int = 19) -> onnx.ModelProto:
    """Scores of classes at a quarter of the size, from a network that works at a half to a sixteenth of it."""
    half = g.op("Relu", g.batch_norm(g.conv(g.input, width, 3, stride=2)))
    quarter = _separable(g, half, 2 * width, stride=2)
    eighth = _separable(g, _separable(g, quarter, 4 * width, stride=2), 4 * width)
    x = _separable(g, eighth, 8 * width, stride=2)
    for _ in range(4):
        x = g.op("Add", x, _separable(g, x, 8 * width))
    for skip in (eighth, quarter):
        x = g.resize(g.op("Relu", g.batch_norm(g.conv(x, skip.channels))), 2, "linear")
        x = _separable(g, g.op("Concat", x, skip, axis=1), skip.channels)
    return g.model(g.conv(x, classes, bias=True))


def _separable(g: Graph, x: Tensor, outputs: int, *, stride: int = 1) -> Tensor:
    x = g.op("Relu", g.batch_norm(g.conv(x, x.channels, 3, stride=stride, group=x.channels)))
    return g.op("Relu", g.batch_norm(g.conv(x, outputs)))
