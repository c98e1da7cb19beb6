"""Post-training quantization of ONNX models with fast finetune, without PyTorch.

    from quark.onnx import quantize  # one call for the usual case
    from quark.onnx import ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, Int8Spec, AdaRoundConfig

See README.md for the first steps and docs/ for the rest. Names are imported when they are asked for: importing this
package takes no time.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from quark.onnx import _preload  # noqa: F401  (first: see there)
from quark.onnx.missing_names import refuse_missing

if TYPE_CHECKING:
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
    from quark.onnx.comparison.compare_models import ComparedModels, compare_models
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
    from quark.onnx.diagnosis import CuredModel, Diagnosis, analyse, cure
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
    from quark.onnx.mixed_precision.target import Target
    from quark.onnx.operators.custom_ops import get_library_path
    from quark.onnx.quantization.api import ModelQuantizer, finetune
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
    from quark.onnx.quantization.quantize import quantize
    from quark.onnx.report.report import Report

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
    "CuredModel",
    "DataError",
    "DataType",
    "Diagnosis",
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
    "Target",
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
    "analyse",
    "compare_models",
    "cure",
    "finetune",
    "get_data_reader",
    "get_library_path",
    "inspect_model",
    "quantize",
    "write_calibration_table",
]

# Where a name of `__all__` comes from at run time. All others are names of the configuration.
_HOMES = {
    "onnxruntime.quantization": (
        *("CalibraterBase", "CalibrationDataReader", "CalibrationMethod", "MinMaxCalibrater", "QuantFormat"),
        *("QuantType", "QuantizationMode", "write_calibration_table"),
    ),
    "quark.onnx.calibration": ("CachedDataReader", "PathDataReader", "RandomDataReader", "get_data_reader"),
    "quark.onnx.calibration_data.images": ("ImagePreprocessing",),
    "quark.onnx.comparison.compare_models": ("ComparedModels", "compare_models"),
    "quark.onnx.config.amd_quark.legacy_names": (
        *("ExtendedCalibrationMethod", "ExtendedQuantFormat", "ExtendedQuantType", "Int16Method", "LayerWiseMethod"),
        *("PowerOfTwoMethod", "VitisQuantFormat", "VitisQuantType"),
    ),
    "quark.onnx.diagnosis": ("CuredModel", "Diagnosis", "analyse", "cure"),
    "quark.onnx.errors": (
        *("ConfigError", "ConfigTypeError", "DataError", "FinetuneError", "ModelError", "ModelTypeError"),
        *("OutOfMemoryError", "QuarkError", "UnsupportedError"),
    ),
    "quark.onnx.inspection": ("InspectedModel", "inspect_model"),
    "quark.onnx.mixed_precision.target": ("Target",),
    "quark.onnx.operators.custom_ops": ("get_library_path",),
    "quark.onnx.quantization.api": ("ModelQuantizer", "finetune"),
    "quark.onnx.quantization.quantize": ("quantize",),
    "quark.onnx.report.report": ("Report",),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("quark-onnx")
    if name.endswith("_QCONFIG") and name in __all__:  # each import has a copy of its own, which it may change
        return import_module("quark.onnx.config.amd_quark.presets").handed_out(name)
    if name in __all__:
        home = next((module for module, names in _HOMES.items() if name in names), "quark.onnx.config")
        found = globals()[name] = getattr(import_module(home), name)
        return found
    if find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise refuse_missing(__name__, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
