"""What Q/DQ nodes need for an integer format."""

from __future__ import annotations

from collections.abc import Iterable

from onnxruntime.quantization import QuantType

from quark.onnx.config.data_type import DATA_TYPES, DataType

__all__ = ["QUANT_TYPES", "integer_type", "qdq_opset"]

QUANT_TYPES = {
    "Int4": QuantType.QInt4,
    "UInt4": QuantType.QUInt4,
    "Int8": QuantType.QInt8,
    "UInt8": QuantType.QUInt8,
    "Int16": QuantType.QInt16,
    "UInt16": QuantType.QUInt16,
}

# The first opset whose QuantizeLinear and DequantizeLinear have integers of so many bits, and an axis. Before 21
# onnxruntime has 4 and 16 bits in its own domain com.microsoft.
_OPSETS = {4: 21, 8: 13, 16: 21, 32: 13}


def integer_type(quant_type: QuantType) -> DataType:
    """The integers of onnxruntime's type."""
    return next(DATA_TYPES[name] for name, kind in QUANT_TYPES.items() if kind is quant_type)


def qdq_opset(kinds: Iterable[DataType]) -> int:
    """The first opset whose Q/DQ nodes have all of the formats."""
    return max(_OPSETS[kind.bits] for kind in kinds)
