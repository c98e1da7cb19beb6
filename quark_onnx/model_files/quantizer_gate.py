"""The scales and zero points of a Q/DQ model that another tool made: checked once, when it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes, constant_tensors, subgraphs
from quark.onnx.graph.opset import opset_of
from quark.onnx.inference.qdq_kernels import newest_qdq_opset

__all__ = ["check_quantizers"]

_Tensors = Mapping[str, onnx.TensorProto]
_Type = onnx.TensorProto.DataType

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_INTEGERS = frozenset({"INT32", "INT16", "UINT16", "INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2"})
_FLOATS = frozenset({"FLOAT", "FLOAT16", "BFLOAT16"})


def check_quantizers(model: onnx.ModelProto) -> None:
    """Check that onnxruntime has QuantizeLinear and DequantizeLinear of a model's opset, and their constants.

    A scale is a finite number above 0; both have one shape, and types that ONNX lets them have; a zero point is of the
    integers' type.

    Raises:
        ModelError: names the tensor, and says what is wrong with it.
    """
    _check_opset(model)
    _check_graph(model.graph, {})


def _check_opset(model: onnx.ModelProto) -> None:
    opset, newest = opset_of(model), newest_qdq_opset(opset_of(model))
    if newest >= opset:
        return
    for node in all_nodes(model.graph):
        if node.op_type in _QDQ and node.domain in ("", "ai.onnx"):
            what = f"{node.op_type} {node.name or node.output[0]!r}"
            raise ModelError(
                f"{what} is of opset {opset}, and onnxruntime {ort.__version__} has it up to opset {newest}: "
                "give a quantized model of that opset"
            )


def _check_graph(graph: onnx.GraphProto, outer: _Tensors) -> None:
    constants = {**outer, **constant_tensors(graph)}
    for node in graph.node:
        if node.op_type in _QDQ and len(node.input) > 1:
            _check_node(node, constants)
        for body in subgraphs(node):
            _check_graph(body, constants)


def _check_node(node: onnx.NodeProto, constants: _Tensors) -> None:
    scale = constants.get(node.input[1])
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    integers = constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    at = f"of {node.op_type} {node.name or node.output[0]!r}"
    if scale is not None:
        _check_scale(scale, f"the scale {node.input[1]!r} {at}")
    if zero_point is None:
        return
    what = f"the zero point {node.input[2]!r} {at}"
    kind = _Type.Name(zero_point.data_type)
    if kind not in _INTEGERS and not kind.startswith("FLOAT8") and kind != "FLOAT4E2M1":
        raise ModelError(f"{what} is {kind}, not of a quantized type")
    if integers is not None and integers.data_type != zero_point.data_type:
        raise ModelError(f"{what} is {kind}, and what it belongs to {_Type.Name(integers.data_type)}")
    if scale is not None and _shape(scale) != _shape(zero_point):
        raise ModelError(f"{what} has the dims {list(zero_point.dims)}, its scale {list(scale.dims)}: give one shape")


def _shape(tensor: onnx.TensorProto) -> tuple[int, ...]:
    """A scalar may be written with an axis of length 1."""
    return () if math.prod(tensor.dims) == 1 else tuple(tensor.dims)


def _check_scale(tensor: onnx.TensorProto, what: str) -> None:
    kind = _Type.Name(tensor.data_type)
    if kind not in _FLOATS:  # ONNX has others, for other things than integers
        if kind.startswith("FLOAT8"):
            return
        raise ModelError(f"{what} is {kind}: a scale is FLOAT, FLOAT16 or BFLOAT16")
    values = numpy_helper.to_array(tensor).astype(np.float32, copy=False)
    if not values.size:
        raise ModelError(f"{what} is empty")
    wrong = ~(np.isfinite(values) & (values > 0))
    if wrong.any():
        raise ModelError(f"{what} holds {values[wrong].flat[0]:g}: a scale is a finite number above 0")
