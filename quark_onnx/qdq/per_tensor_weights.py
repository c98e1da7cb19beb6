"""The weights that onnxruntime cannot quantize per channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

from quark.onnx.graph.editor import attributes
from quark.onnx.layers.weight_layers import also_data
from quark.onnx.operators.table import OPERATORS

__all__ = ["one_scale_weights"]


def one_scale_weights(model: onnx.ModelProto) -> set[str]:
    """The weights of a prepared float model that get one scale whatever was asked for.

    There are three kinds:

    - weights of which an operator says so (`Operator.per_channel`, with the reasons);
    - weights that are the first input, of which kernels take one scale;
    - weights that other nodes read too: what Gather makes of a table gets the scales of the table's rows, not of its
      own.
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    return {name for node in model.graph.node for name in _with_one_scale(node, ranks)} | also_data(model)


def _with_one_scale(node: onnx.NodeProto, ranks: Mapping[str, int]) -> Iterator[str]:
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        return
    for index in operator.weight_inputs:
        weight = node.input[index] if index < len(node.input) else ""
        if weight in ranks and (index == 0 or not operator.per_channel(attributes(node), ranks[weight])):
            yield weight
