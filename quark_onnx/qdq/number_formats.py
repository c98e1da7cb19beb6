"""What Q/DQ nodes need for an integer format."""

from __future__ import annotations

from collections.abc import Iterable

from onnxruntime.quantization import QuantType

from quark.onnx.config.data_type import DATA_TYPES, DataType

__all__ = ["QUANT_TYPES", "integer_type", "qdq_opset"]

QUANT_TYPES = {name: QuantType[kind.quantizer] for name, kind in DATA_TYPES.items() if kind.quantizer}


def integer_type(quant_type: QuantType) -> DataType:
    """The integers of onnxruntime's type."""
    return next(DATA_TYPES[name] for name, kind in QUANT_TYPES.items() if kind is quant_type)


def qdq_opset(kinds: Iterable[DataType]) -> int:
    """The first opset whose Q/DQ nodes have all of the formats."""
    return max(kind.first_opset for kind in kinds)
