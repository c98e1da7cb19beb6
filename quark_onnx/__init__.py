"""Post-training quantization of ONNX models with fast finetune, without PyTorch.

    from quark.onnx import quantize  # one call for the usual case
    from quark.onnx import ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, Int8Spec, AdaRoundConfig

See README.md for the first steps and docs/ for the rest.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from quark.onnx import _preload  # noqa: F401  (first: see there)

# isort: split
from onnxruntime.quantization import (
    CalibraterBase,
    CalibrationDataReader,
    CalibrationMethod,
    MinMaxCalibrater,
    QuantFormat,
    QuantizationMode,
    QuantType,
    write_calibration_table,
)

from quark.onnx.calibration import CachedDataReader, PathDataReader, RandomDataReader, get_data_reader
from quark.onnx.calibration_data.images import ImagePreprocessing
from quark.onnx.comparison import ComparedModels, compare_models
from quark.onnx.config import (
    BFP16,
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    AutoMixprecisionConfig,
    BFloat16,
    BFloat16Spec,
    BFP16Spec,
    BiasCorrectionConfig,
    CalibMethod,
    CLEConfig,
    Config,
    DataType,
    Float16,
    Float16Spec,
    GPTQConfig,
    Int2,
    Int2Spec,
    Int4,
    Int4Spec,
    Int8,
    Int8Spec,
    Int16,
    Int16Spec,
    Int32,
    Int32Spec,
    MX4Spec,
    MX6Spec,
    MX9Spec,
    MXFP4E2M1Spec,
    MXFP6E2M3Spec,
    MXFP6E3M2Spec,
    MXFP8E4M3Spec,
    MXFP8E5M2Spec,
    MXInt8Spec,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    QuantizationConfig,
    QuarotConfig,
    ScaleType,
    SmoothQuantConfig,
    UInt2,
    UInt2Spec,
    UInt4,
    UInt4Spec,
    UInt8,
    UInt8Spec,
    UInt16,
    UInt16Spec,
    UInt32,
    UInt32Spec,
    XInt8Spec,
)
from quark.onnx.config.amd_quark.legacy_names import (
    ExtendedCalibrationMethod,
    ExtendedQuantFormat,
    ExtendedQuantType,
    Int16Method,
    LayerWiseMethod,
    PowerOfTwoMethod,
    VitisQuantFormat,
    VitisQuantType,
)
from quark.onnx.config.amd_quark.presets import READY, handed_out
from quark.onnx.errors import (
    ConfigError,
    ConfigTypeError,
    DataError,
    FinetuneError,
    ModelError,
    ModelTypeError,
    OutOfMemoryError,
    QuarkError,
    UnsupportedError,
)
from quark.onnx.inspection import InspectedModel, inspect_model
from quark.onnx.missing_names import refuse_missing
from quark.onnx.operators.custom_ops import get_library_path
from quark.onnx.quantization.api import ModelQuantizer, finetune
from quark.onnx.quantization.quantize import quantize
from quark.onnx.report.report import Report

if TYPE_CHECKING:
    from quark.onnx.quantization.config.custom_config import (
        A8W8_ADAQUANT_QCONFIG,
        A8W8_ADAROUND_QCONFIG,
        A8W8_QCONFIG,
        A16W8_ADAQUANT_QCONFIG,
        A16W8_ADAROUND_QCONFIG,
        A16W8_QCONFIG,
        BF16_QCONFIG,
        BFP16_QCONFIG,
        VINT8_QCONFIG,
        XINT8_ADAQUANT_QCONFIG,
        XINT8_ADAROUND_QCONFIG,
        XINT8_QCONFIG,
    )

__all__ = [
    "A8W8_ADAQUANT_QCONFIG",
    "A8W8_ADAROUND_QCONFIG",
    "A8W8_QCONFIG",
    "A16W8_ADAQUANT_QCONFIG",
    "A16W8_ADAROUND_QCONFIG",
    "A16W8_QCONFIG",
    "BF16_QCONFIG",
    "BFP16",
    "BFP16_QCONFIG",
    "VINT8_QCONFIG",
    "XINT8_ADAQUANT_QCONFIG",
    "XINT8_ADAROUND_QCONFIG",
    "XINT8_QCONFIG",
    "AdaQuantConfig",
    "AdaRoundConfig",
    "AlgoConfig",
    "AutoMixprecisionConfig",
    "BFP16Spec",
    "BFloat16",
    "BFloat16Spec",
    "BiasCorrectionConfig",
    "CLEConfig",
    "CachedDataReader",
    "CalibMethod",
    "CalibraterBase",
    "CalibrationDataReader",
    "CalibrationMethod",
    "ComparedModels",
    "Config",
    "ConfigError",
    "ConfigTypeError",
    "DataError",
    "DataType",
    "ExtendedCalibrationMethod",
    "ExtendedQuantFormat",
    "ExtendedQuantType",
    "FinetuneError",
    "Float16",
    "Float16Spec",
    "GPTQConfig",
    "ImagePreprocessing",
    "InspectedModel",
    "Int2",
    "Int2Spec",
    "Int4",
    "Int4Spec",
    "Int8",
    "Int8Spec",
    "Int16",
    "Int16Method",
    "Int16Spec",
    "Int32",
    "Int32Spec",
    "LayerWiseMethod",
    "MX4Spec",
    "MX6Spec",
    "MX9Spec",
    "MXFP4E2M1Spec",
    "MXFP6E2M3Spec",
    "MXFP6E3M2Spec",
    "MXFP8E4M3Spec",
    "MXFP8E5M2Spec",
    "MXInt8Spec",
    "MinMaxCalibrater",
    "ModelError",
    "ModelQuantizer",
    "ModelTypeError",
    "OutOfMemoryError",
    "PathDataReader",
    "PowerOfTwoMethod",
    "QConfig",
    "QLayerConfig",
    "QTensorConfig",
    "QuantFormat",
    "QuantGranularity",
    "QuantType",
    "QuantizationConfig",
    "QuantizationMode",
    "QuarkError",
    "QuarotConfig",
    "RandomDataReader",
    "Report",
    "ScaleType",
    "SmoothQuantConfig",
    "UInt2",
    "UInt2Spec",
    "UInt4",
    "UInt4Spec",
    "UInt8",
    "UInt8Spec",
    "UInt16",
    "UInt16Spec",
    "UInt32",
    "UInt32Spec",
    "UnsupportedError",
    "VitisQuantFormat",
    "VitisQuantType",
    "XInt8Spec",
    "compare_models",
    "finetune",
    "get_data_reader",
    "get_library_path",
    "inspect_model",
    "quantize",
    "write_calibration_table",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("quark-onnx")
    if name in READY:
        return handed_out(name)  # each import has a copy of its own, which it may change
    raise refuse_missing(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *READY})
