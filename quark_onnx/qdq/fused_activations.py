"""An activation belongs to the layer before it: no Q/DQ in between, as AMD's XInt8 has it."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import numpy_helper

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import GraphEditor
from quark.onnx.operators.table import LINEAR

__all__ = ["drop_qdq_before_activations"]

_LAYERS = frozenset({"Add", "AveragePool", "GlobalAveragePool", "MaxPool", *LINEAR})
_ACTIVATIONS = frozenset({"Clip", "LeakyRelu", "PRelu", "Relu"})
_CLIPS = ([0.0, 6.0], [0.0, 1.0])


def drop_qdq_before_activations(model: onnx.ModelProto, is_fused: Callable[[str, str], bool]) -> None:
    """Let Relu, LeakyRelu, PRelu and Clip to [0, 6] or [0, 1] read the layer before them in float.

    The layer's output must have no other reader. In place.

    Args:
        model: a quantized model, in topological order.
        is_fused: whether to do it, by the output and the op type of the activation.
    """
    graph = Dataflow(model)
    dropped: set[str] = set()
    for node in model.graph.node:
        if node.op_type not in _ACTIVATIONS or (node.op_type == "Clip" and _bounds(node, graph) not in _CLIPS):
            continue
        dequantize = _maker(node.input[0], "DequantizeLinear", graph)
        quantize = dequantize and _maker(dequantize.input[0], "QuantizeLinear", graph)
        layer = quantize and graph.producer.get(quantize.input[0])
        if dequantize and quantize and layer and layer.op_type in _LAYERS:
            between = (layer.output[0], quantize.output[0], dequantize.output[0])
            made = node.output[0].removesuffix("_QuantizeLinear_Input")  # the name that an output of the model had
            if is_fused(made, node.op_type) and all(graph.only_reader(tensor) for tensor in between):
                node.input[0] = between[0]
                dropped.update(between[1:])
    if not dropped:
        return
    kept = [node for node in model.graph.node if node.output[0] not in dropped]
    model.graph.ClearField("node")
    model.graph.node.extend(kept)
    GraphEditor(model.graph).remove_unused_initializers()


def _maker(tensor: str, op_type: str, graph: Dataflow) -> onnx.NodeProto | None:
    node = graph.producer.get(tensor)
    return node if node is not None and node.op_type == op_type else None


def _bounds(node: onnx.NodeProto, graph: Dataflow) -> list[float]:
    """Return those bounds of a Clip that are constant."""
    tensors = (graph.initializers.get(name) for name in node.input[1:])
    return [numpy_helper.to_array(tensor).item() for tensor in tensors if tensor is not None]
