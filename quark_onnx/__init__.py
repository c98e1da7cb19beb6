"""Post-training quantization of ONNX models with fast finetune, without PyTorch.

    from quark.onnx import ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, Int8Spec, AdaRoundConfig

See README.md for the first steps and docs/ for the rest.
"""

from quark.onnx import _preload  # noqa: F401  (first: see there)
from quark.onnx.errors import (
    ConfigError,
    ConfigTypeError,
    DataError,
    FinetuneError,
    ModelError,
    QuarkError,
    UnsupportedError,
)
from quark.onnx.quantization.api import ModelQuantizer, finetune
from quark.onnx.quantization.config import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    CalibMethod,
    Int8,
    Int8Spec,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt8,
    UInt8Spec,
    XInt8Spec,
)
from quark.onnx.report.report import Report

__all__ = [
    "AdaQuantConfig",
    "AdaRoundConfig",
    "AlgoConfig",
    "CalibMethod",
    "ConfigError",
    "ConfigTypeError",
    "DataError",
    "FinetuneError",
    "Int8",
    "Int8Spec",
    "ModelError",
    "ModelQuantizer",
    "QConfig",
    "QLayerConfig",
    "QTensorConfig",
    "QuantGranularity",
    "QuarkError",
    "Report",
    "ScaleType",
    "UInt8",
    "UInt8Spec",
    "UnsupportedError",
    "XInt8Spec",
    "finetune",
]
