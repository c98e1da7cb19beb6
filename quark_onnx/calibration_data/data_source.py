"""Where calibration data comes from: the user's reader, a folder, or nowhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.checked_items import DataReader
from quark.onnx.calibration_data.path_reader import PathDataReader
from quark.onnx.calibration_data.ready_readers import RandomDataReader
from quark.onnx.errors import DataError
from quark.onnx.model_files.model_file import ModelLike

__all__ = ["get_data_reader"]

_LOG = logging.getLogger(__name__)


def get_data_reader(
    model_input: ModelLike,
    calibration_data_reader: Data | None = None,
    calibration_data_path: str | os.PathLike[str] | None = None,
    extra_options: Mapping[str, Any] | None = None,
) -> DataReader:
    """A reader of the data given, else of the folder's .npy files; else, with the option UseRandomData, a random one.

    Args:
        model_input: the model, as a path or ModelProto.
        calibration_data_reader: anything with get_next(), arrays, items or a path, as for `data_reader`.
        calibration_data_path: a folder, as for `PathDataReader`; not looked at where there is a reader.
        extra_options: those of `QConfig`: UseRandomData, RandomDataReaderInputShape, RandomDataReaderInputDataRange.

    Raises:
        OSError: there is no such folder, or no file in it.
        DataError: there is none of the three, or it does not fit the model.
    """
    options = extra_options or {}
    if calibration_data_reader is not None:
        if calibration_data_path is not None:
            _LOG.warning("calibration data comes from the reader: the path %r is not looked at", calibration_data_path)
        return data_reader(calibration_data_reader, model_input)
    if calibration_data_path is not None:
        return PathDataReader(model_input, calibration_data_path)
    if options.get("UseRandomData", False):
        return RandomDataReader(
            model_input, options.get("RandomDataReaderInputShape"), options.get("RandomDataReaderInputDataRange")
        )
    raise DataError(
        "a calibration data reader is needed: an object with get_next(), arrays, or calibration_data_path, a folder of "
        ".npy files; for a trial without data, the extra option UseRandomData"
    )
