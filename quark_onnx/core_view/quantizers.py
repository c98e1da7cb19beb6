"""Scales and zero points of the Q/DQ nodes of a quantized graph."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.config.data_type import DATA_TYPES
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import attribute

__all__ = ["INTEGERS", "constant_values", "dequantize_parameters"]

# The types of weights and activations, by NumPy's name.
INTEGERS = {kind.element_type.lower(): kind for kind in DATA_TYPES.values() if kind.near is not None}


def dequantize_parameters(
    node: onnx.NodeProto, graph: Dataflow
) -> tuple[NDArray[np.float32] | None, NDArray[np.generic]]:
    """Scale and zero point of a Q/DQ node; scale None where they are not constant floats of 32 or 16 bits."""
    tensor = graph.initializers.get(node.input[1])
    if tensor is None or tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
        return None, np.zeros(1, np.int32)
    scale = onnx.numpy_helper.to_array(tensor).astype(np.float32, copy=False)
    zero_point = node.input[2] if len(node.input) > 2 else ""
    if not zero_point:
        return scale, np.zeros(scale.shape, onnx.helper.tensor_dtype_to_np_dtype(_type_without_zero_point(node, graph)))
    if zero_point not in graph.initializers:
        return None, np.zeros(1, np.int32)
    return scale, onnx.numpy_helper.to_array(graph.initializers[zero_point])


def _type_without_zero_point(node: onnx.NodeProto, graph: Dataflow) -> int:
    """ONNX: uint8, unless QuantizeLinear names another; DequantizeLinear takes what it is given."""
    if node.op_type == "DequantizeLinear":
        if node.input[0] in graph.initializers:
            return graph.initializers[node.input[0]].data_type
        maker = graph.producer.get(node.input[0])
        if maker is None or maker.op_type != "QuantizeLinear":
            return onnx.TensorProto.UINT8
        if len(maker.input) > 2 and maker.input[2] in graph.initializers:
            return graph.initializers[maker.input[2]].data_type
        node = maker
    return int(attribute(node, "output_dtype", 0)) or onnx.TensorProto.UINT8


def constant_values(graph: Dataflow, name: str) -> NDArray[np.float32] | None:
    """Constant floats, or integers behind DequantizeLinear with one scale, as float32."""
    if name in graph.initializers:
        array = onnx.numpy_helper.to_array(graph.initializers[name])
        return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else None
    node = graph.producer.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in graph.initializers:
        return None
    scale, zero_point = dequantize_parameters(node, graph)
    if scale is None or scale.size != 1:
        return None
    integers = onnx.numpy_helper.to_array(graph.initializers[node.input[0]]).astype(np.float32)
    return (integers - zero_point.astype(np.float32)) * scale
