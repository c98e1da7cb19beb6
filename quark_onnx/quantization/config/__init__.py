"""The configuration of quantization and finetuning: frozen, validated when made, never changed by its use."""

from .algorithm import AdaQuantConfig, AdaRoundConfig, AlgoConfig
from .config import QConfig
from .data_type import DataType, Int8, UInt8
from .spec import (
    CalibMethod,
    Int8Spec,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt8Spec,
    XInt8Spec,
)

__all__ = [
    "AdaQuantConfig",
    "AdaRoundConfig",
    "AlgoConfig",
    "CalibMethod",
    "DataType",
    "Int8",
    "Int8Spec",
    "QConfig",
    "QLayerConfig",
    "QTensorConfig",
    "QuantGranularity",
    "ScaleType",
    "UInt8",
    "UInt8Spec",
    "XInt8Spec",
]
