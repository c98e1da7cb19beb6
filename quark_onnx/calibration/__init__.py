"""From calibration samples to value ranges and weight scales; readers of samples."""

from onnxruntime.quantization import CalibraterBase, CalibrationDataReader, CalibrationMethod, MinMaxCalibrater

from quark.onnx.calibration_data.data_source import get_data_reader
from quark.onnx.calibration_data.path_reader import PathDataReader
from quark.onnx.calibration_data.ready_readers import CachedDataReader, RandomDataReader
from quark.onnx.config.amd_quark.legacy_names import (
    ExtendedCalibrationMethod,
    Int16Method,
    LayerWiseMethod,
    PowerOfTwoMethod,
)
from quark.onnx.missing_names import refuse_missing

__all__ = [
    "CachedDataReader",
    "CalibraterBase",
    "CalibrationDataReader",
    "CalibrationMethod",
    "ExtendedCalibrationMethod",
    "Int16Method",
    "LayerWiseMethod",
    "MinMaxCalibrater",
    "PathDataReader",
    "PowerOfTwoMethod",
    "RandomDataReader",
    "get_data_reader",
]


def __getattr__(name: str) -> object:
    raise refuse_missing(__name__, name)
