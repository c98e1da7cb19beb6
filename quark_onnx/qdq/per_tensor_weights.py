"""The weights that onnxruntime cannot quantize per channel."""

from __future__ import annotations

import onnx

from quark.onnx.graph.editor import attribute
from quark.onnx.layers.weight_layers import also_data

__all__ = ["one_scale_weights"]


def one_scale_weights(model: onnx.ModelProto) -> set[str]:
    """Those that get one scale whatever was asked for, of a prepared float model.

    Those of ConvTranspose with groups, where onnxruntime's quantizer cannot tell the channels of the bias apart, of
    MatMul beyond two dimensions, where it takes the wrong axis and older kernels fail on any, or as the first input, of
    which kernels take one scale, of LayerNormalization beyond one, where it takes the scale's second axis and the
    bias's first, and those that other nodes read too: what Gather makes of a table gets the scales of the table's rows,
    not of its own.
    """
    graph = model.graph
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    weights = {
        node.input[1]
        for node in graph.node
        if (node.op_type == "ConvTranspose" and attribute(node, "group", 1) != 1)
        or (node.op_type == "MatMul" and ranks.get(node.input[1], 2) != 2)
        or (node.op_type == "LayerNormalization" and ranks.get(node.input[1], 1) > 1)
    }
    weights.update(node.input[0] for node in graph.node if node.op_type == "MatMul" and node.input[0] in ranks)
    return weights | also_data(model)
