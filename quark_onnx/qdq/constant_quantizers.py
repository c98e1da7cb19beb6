"""Weights that a Q/DQ model keeps as floats in front of a QuantizeLinear."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from quark.onnx.graph.editor import GraphEditor, constant_tensors

__all__ = ["with_integer_constants"]


def with_integer_constants(quantized: onnx.ModelProto) -> onnx.ModelProto:
    """A Q/DQ model that has integer initializers where a QuantizeLinear reads constants only; itself without any.

    It computes the same, as ONNX defines QuantizeLinear.

    Args:
        quantized: not changed.
    """
    constants = constant_tensors(quantized.graph)
    outputs = {value.name for value in quantized.graph.output}
    folded = {
        node.output[0]: node
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.domain in ("", "ai.onnx") and node.output[0] not in outputs
        if all(name in constants for name in node.input if name)
    }
    if not folded:
        return quantized
    result = onnx.ModelProto()
    result.CopyFrom(quantized)
    graph = result.graph
    kept = [node for node in graph.node if node.output[0] not in folded]
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(_quantized(node, constants, result) for node in folded.values())
    GraphEditor(graph).remove_unused_initializers()
    return result


def _quantized(
    node: onnx.NodeProto, constants: dict[str, onnx.TensorProto], model: onnx.ModelProto
) -> onnx.TensorProto:
    alone = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    alone.graph.name = "constant"
    alone.graph.node.append(node)
    for name in dict.fromkeys(filter(None, node.input)):
        tensor = alone.graph.initializer.add()
        tensor.CopyFrom(constants[name])
        tensor.name = name
    alone.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    values = list(ReferenceEvaluator(alone).run(None, {}))[0]  # noqa: RUF015 (its type says that it may be a dict)
    return numpy_helper.from_array(np.asarray(values), node.output[0])
