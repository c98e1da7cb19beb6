"""Weights with a scale for each block of inputs, as DequantizeLinear has them since opset 21 (block_size)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx import _core
from quark.onnx.config.data_type import DataType
from quark.onnx.graph.editor import reads
from quark.onnx.operators.table import OPERATORS
from quark.onnx.qdq.number_formats import integer_type
from quark.onnx.qdq.quant_overrides import TensorFormat
from quark.onnx.qdq.tensor_roles import channel_axis
from quark.onnx.qdq.weight_params import WeightParams

__all__ = ["BLOCKWISE_OPSET", "input_axes", "write_blocks"]

BLOCKWISE_OPSET = 21


def input_axes(graph: onnx.GraphProto) -> dict[str, int]:
    """The float weights that may have blocks, and the axis of each that inputs lie on.

    All that reads them is matrix products, as second input and with inputs on the same axis.
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer if tensor.data_type == tensor.FLOAT}
    found: dict[str, set[int | None]] = {}
    for node in graph.node:
        for name in reads(node):
            if ranks.get(name) == 2:
                found.setdefault(name, set()).add(_input_axis(node, name))
    return {name: axis for name, (axis, *others) in found.items() if axis is not None and not others}


def _input_axis(node: onnx.NodeProto, weight: str) -> int | None:
    operator = OPERATORS.get(node.op_type)
    is_product = operator is not None and operator.family.channels_last
    if not is_product or [i for i, name in enumerate(node.input) if name == weight] != [1]:
        return None
    axis = channel_axis(node, (0, 0))
    return None if axis is None else 1 - axis


def write_blocks(
    quantized: onnx.GraphProto,
    weights: Mapping[str, tuple[onnx.TensorProto, int, TensorFormat]],
    known: Mapping[str, WeightParams],
) -> None:
    """Quantize weights once more, in blocks. Biases stay: their scales are their own.

    Args:
        quantized: the Q/DQ graph, in which each weight has one scale, or one per output channel; changed.
        weights: by name: the float weight, the axis of its inputs, and the format.
        known: parameters in blocks; the others are those of minimum and maximum.
    """
    constants = {tensor.name: tensor for tensor in quantized.initializer}
    readers = {node.input[0]: node for node in quantized.node if node.op_type == "DequantizeLinear"}
    for name, (tensor, axis, own) in weights.items():
        dequantize = readers.get(f"{name}_quantized")
        if dequantize is None:  # it is not quantized
            continue
        weight, kind = numpy_helper.to_array(tensor), integer_type(own.quant_type)
        params = known.get(name) or _min_max(weight, axis, own, kind)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(own.quant_type.tensor_type)
        arrays = (_integers(weight, params, own, kind), params.scale, params.zero_point)
        for constant, values in zip(dequantize.input, arrays, strict=True):
            typed = values if values.dtype == np.float32 else values.astype(dtype)
            constants[constant].CopyFrom(numpy_helper.from_array(typed, constant))
        del dequantize.attribute[:]
        dequantize.attribute.extend(
            onnx.helper.make_attribute(key, value) for key, value in (("axis", axis), ("block_size", own.block))
        )


def _blocks(weight: NDArray[np.float32], axis: int, size: int) -> Iterator[NDArray[np.float32]]:
    """Along the axis; the last may be short."""
    for begin in range(0, weight.shape[axis], size):
        yield weight.take(range(begin, min(begin + size, weight.shape[axis])), axis)


def _min_max(weight: NDArray[np.float32], axis: int, own: TensorFormat, kind: DataType) -> WeightParams:
    lowest = kind.symmetric_qmin if own.symmetric else kind.qmin
    found = [
        [
            _core.affine_from_range(float(low), float(high), lowest, kind.qmax, own.symmetric, own.scales.name)
            for low, high in zip(block.min(axis=axis), block.max(axis=axis), strict=True)
        ]
        for block in _blocks(weight, axis, own.block)
    ]
    scale, zero_point = np.moveaxis(np.array(found), -1, 0)
    if axis == 1:
        scale, zero_point = scale.T, zero_point.T
    return WeightParams(scale.astype(np.float32), zero_point.astype(np.int32), axis, own.block)


def _integers(
    weight: NDArray[np.float32], params: WeightParams, own: TensorFormat, kind: DataType
) -> NDArray[np.int32]:
    assert params.axis is not None

    def of_every_weight(values: NDArray[Any]) -> NDArray[Any]:
        return np.repeat(values, own.block, axis=params.axis)[: weight.shape[0], : weight.shape[1]]

    lowest = kind.symmetric_qmin if own.symmetric else kind.qmin
    steps = np.rint(weight / of_every_weight(params.scale)) + of_every_weight(params.zero_point)
    clipped: NDArray[np.int32] = np.clip(steps, lowest, kind.qmax).astype(np.int32)
    return clipped
