"""How large a model's constants are, and how many of its layers have integer weights: before and after."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import constant_tensors
from quark.onnx.operators.table import LINEAR

__all__ = ["ModelSizes", "constant_bytes", "model_sizes"]

_BITS: dict[int, int] = {
    onnx.TensorProto.INT4: 4, onnx.TensorProto.UINT4: 4, onnx.TensorProto.INT2: 2, onnx.TensorProto.UINT2: 2,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """The float model and the quantized one.

    Attributes:
        float_bytes, quantized_bytes: of all constants of the main graph, as ONNX packs them.
        integer_layers: Conv, ConvTranspose, Gemm and MatMul nodes with a constant integer weight.
        float_layers: those that are left with a constant float weight.
    """

    float_bytes: int
    quantized_bytes: int
    integer_layers: int
    float_layers: int


def model_sizes(float_model: onnx.ModelProto, quantized: onnx.ModelProto) -> ModelSizes:
    """The sizes of two models."""
    kinds = list(_weights(Dataflow(quantized)))
    return ModelSizes(
        float_bytes=constant_bytes(float_model),
        quantized_bytes=constant_bytes(quantized),
        integer_layers=kinds.count("integer"),
        float_layers=kinds.count("float"),
    )


def constant_bytes(model: onnx.ModelProto) -> int:
    """All constants of the main graph, as ONNX packs them."""
    return sum(_bytes(tensor) for tensor in constant_tensors(model.graph).values())


def _bytes(tensor: onnx.TensorProto) -> int:
    count, kind = math.prod(tensor.dims), tensor.data_type
    bits = _BITS.get(kind) or 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    return int(-(-count * bits // 8))


def _weights(graph: Dataflow) -> Iterator[str]:
    """What the weight of each layer is."""
    for node in graph.model.graph.node:
        if node.op_type not in LINEAR or node.domain not in ("", "ai.onnx"):
            continue
        constant = [name for name in node.input[:2] if graph.is_constant(name)]
        if len(constant) != 1:
            continue
        maker = graph.producer.get(constant[0])
        dequantized = maker is not None and maker.op_type == "DequantizeLinear"
        yield "integer" if dequantized else "float"
