"""From calibration samples to value ranges and weight scales; readers of samples."""

from quark.onnx.calibration_data.data_source import get_data_reader
from quark.onnx.calibration_data.path_reader import PathDataReader
from quark.onnx.calibration_data.ready_readers import CachedDataReader, RandomDataReader

__all__ = ["CachedDataReader", "PathDataReader", "RandomDataReader", "get_data_reader"]
