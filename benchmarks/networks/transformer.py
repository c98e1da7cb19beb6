"""Transformers: ViT and DeiT (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929), BERT (Devlin et al. 2018,
https://arxiv.org/abs/1810.04805).
"""

from __future__ import annotations

import numpy as np
import onnx

from networks.graph import Graph, Tensor

__all__ = ["bert", "vision_transformer"]


def vision_transformer(
    g: Graph, *, width: int, heads: int, layers: int = 12, patch: int = 16, classes: int = 1000
) -> onnx.ModelProto:
    """Normalization before each part; the class token is read."""
    x = g.conv(g.input, width, patch, stride=patch, bias=True)
    x = g.op("Transpose", g.reshape(x, 0, width, -1), perm=[0, 2, 1])
    length = g.op("Gather", g.op("Shape", g.input), np.array([0], np.int64))
    token = g.op("Expand", g.small(1, 1, width), g.op("Concat", length, np.array([1, width], np.int64), axis=0))
    x = g.op("Concat", token, x, axis=1)
    x = g.op("Add", x, g.small(1, x.values.shape[1], width))
    for _ in range(layers):
        x = g.op("Add", x, _attention(g, g.layer_norm(x), heads))
        x = g.op("Add", x, _feed_forward(g, g.layer_norm(x)))
    token = g.op("Gather", g.layer_norm(x), np.array(0, np.int64), axis=1)
    return g.model(g.dense(token, classes, gain=1.0))


def bert(g: Graph, *, width: int, heads: int, layers: int = 12, vocabulary: int = 30522) -> onnx.ModelProto:
    """Token ids (N, length) to a pooled vector and the last hidden states; normalization behind each part."""
    x = g.op("Gather", g.small(vocabulary, width), g.input)
    x = g.layer_norm(g.op("Add", x, g.small(1, x.values.shape[1], width)))
    for _ in range(layers):
        x = g.layer_norm(g.op("Add", x, _attention(g, x, heads)))
        x = g.layer_norm(g.op("Add", x, _feed_forward(g, x)))
    first = g.op("Gather", x, np.array(0, np.int64), axis=1)
    return g.model(x, g.op("Tanh", g.dense(first, width, gain=1.0)))


def _attention(g: Graph, x: Tensor, heads: int) -> Tensor:
    width = x.values.shape[-1]
    q, k, v = (g.reshape(g.linear(x, width), 0, 0, heads, width // heads) for _ in range(3))
    scores = g.op("MatMul", g.op("Transpose", q, perm=[0, 2, 1, 3]), g.op("Transpose", k, perm=[0, 2, 3, 1]))
    weights = g.op("Softmax", g.op("Div", scores, np.array(np.sqrt(width / heads), np.float32)), axis=-1)
    y = g.op("MatMul", weights, g.op("Transpose", v, perm=[0, 2, 1, 3]))
    return g.linear(g.reshape(g.op("Transpose", y, perm=[0, 2, 1, 3]), 0, 0, width), width)


def _feed_forward(g: Graph, x: Tensor) -> Tensor:
    width = x.values.shape[-1]
    return g.linear(g.gelu(g.linear(x, 4 * width)), width)
