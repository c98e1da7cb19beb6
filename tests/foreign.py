"""Models that another tool quantized, and models written in other ways, for the tests of the public API."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TypeVar

import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from small_models import Arrays, Reader


class OnnxruntimeReader(Reader, CalibrationDataReader):
    """onnxruntime insists on its own base class."""


Proto = TypeVar("Proto", onnx.ModelProto, onnx.NodeProto)


def copy_of(proto: Proto) -> Proto:
    copy = type(proto)()
    copy.CopyFrom(proto)
    return copy


def statically_quantized(model: onnx.ModelProto, arrays: Arrays, **options: object) -> onnx.ModelProto:
    """The model as onnxruntime quantizes it, with uint8 activations and int8 weights."""
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8} | options
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "quantized.onnx")
        quantize_static(copy_of(model), path, OnnxruntimeReader(arrays), quant_format=QuantFormat.QDQ, **options)
        return onnx.load(path)


def with_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is a Constant node instead, as Paddle's exporter writes them."""
    result = copy_of(model)
    nodes = list(result.graph.node)
    result.graph.ClearField("node")
    for tensor in result.graph.initializer:
        node = result.graph.node.add(op_type="Constant", output=[tensor.name])
        node.attribute.append(onnx.helper.make_attribute("value", tensor))
        node.attribute[0].t.ClearField("name")
    result.graph.node.extend(nodes)
    result.graph.ClearField("initializer")
    return result


def with_node_names(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """Every node has this one name; "": none."""
    result = copy_of(model)
    for node in result.graph.node:
        node.name = name
    return result


def with_initializers_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is a graph input too, as files before IR version 4 have it."""
    result = copy_of(model)
    for tensor in result.graph.initializer:
        result.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return result


def in_floats(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """Weights, inputs and outputs of another float type, an element type of ONNX."""
    result, dtype = copy_of(model), onnx.helper.tensor_dtype_to_np_dtype(kind)
    for tensor in result.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    return result
