"""Networks without branches, or with hardly any: VGG-16 (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556),
convolutions with a GRU for speech, and very many small layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from networks.graph import Graph

__all__ = ["small_layers", "speech", "vgg"]


def vgg(g: Graph, *, stages: Sequence[Sequence[int]], hidden: int = 4096, classes: int = 1000) -> onnx.ModelProto:
    """Stages of 3x3 convolutions with so many outputs, then three dense layers, the first with very many inputs."""
    x = g.input
    for stage in stages:
        for outputs in stage:
            x = g.op("Relu", g.conv(x, outputs, 3, bias=True))
        x = g.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Flatten", x)
    for _ in range(2):
        x = g.op("Relu", g.dense(x, hidden))
    return g.model(g.dense(x, classes))


def speech(g: Graph, *, width: int = 32, hidden: int = 384, classes: int = 64) -> onnx.ModelProto:
    """Spectra (N, 1, time, frequencies) to scores for each step: two convolutions, a GRU of two directions, a layer."""
    x = g.op("Relu", g.batch_norm(g.conv(g.input, width, 3, stride=2)))
    x = g.op("Relu", g.batch_norm(g.conv(x, width, 3, stride=2)))
    steps = x.values.shape[2]
    x = g.reshape(g.op("Transpose", x, perm=[2, 0, 1, 3]), steps, -1, x.channels * x.values.shape[3])
    inputs = x.values.shape[2]
    weight = np.stack([g.drawn((3 * hidden, inputs), inputs, 1.0) for _ in range(2)])
    recurrence = np.stack([g.drawn((3 * hidden, hidden), hidden, 0.5) for _ in range(2)])
    x, _ = g.ops("GRU", x, weight, recurrence, outputs=2, hidden_size=hidden, direction="bidirectional")
    x = g.reshape(g.op("Transpose", x, perm=[2, 0, 1, 3]), -1, steps, 2 * hidden)
    return g.model(g.linear(g.op("Relu", g.linear(x, hidden, 2.0)), classes))


def small_layers(g: Graph, *, pairs: int, width: int = 16) -> onnx.ModelProto:
    """A convolution, and so many blocks of a depthwise and a pointwise one around which there is a shortcut."""
    x = g.op("Relu", g.conv(g.input, width, 3, bias=True))
    for _ in range(pairs):
        y = g.op("Relu", g.conv(x, width, 3, group=width, bias=True))
        y = g.op("Mul", g.conv(y, width, bias=True), np.array(0.1, np.float32))  # or activations would grow
        x = g.op("Add", x, y)
    return g.model(x)
