"""ModelQuantizer with a folder of files, random data, and readers of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_models import Reader, mean_squared_error, mlp, samples

from quark.onnx import (
    AdaRoundConfig,
    CachedDataReader,
    DataError,
    Int8Spec,
    ModelQuantizer,
    PathDataReader,
    QConfig,
    QLayerConfig,
    RandomDataReader,
    UInt8Spec,
)

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
CONFIG = QConfig(LAYER, algo_config=[AdaRoundConfig()])


def test_a_path_gives_the_model_that_a_reader_of_the_same_data_gives(tmp_path: Path) -> None:
    model = mlp()
    data = samples(model, 20)
    for index, x in enumerate(data["x"]):
        np.save(tmp_path / f"{index:03}.npy", x)
    quantizer = ModelQuantizer(CONFIG)
    by_path = quantizer.quantize_model(model, None, calibration_data_path=tmp_path)
    assert quantizer.report.samples == 20
    readers = (Reader(data), PathDataReader(model, tmp_path), CachedDataReader(Reader(data, batch=7, reuse=True)))
    for reader in readers:
        assert ModelQuantizer(CONFIG).quantize_model(model, None, reader) == by_path
    assert ModelQuantizer(CONFIG).quantize_model(model, None, None, str(tmp_path)) == by_path


def test_random_data_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    options = {"UseRandomData": True, "RandomDataReaderInputShape": {"x": [64, 12]}}
    quantizer = ModelQuantizer(QConfig(LAYER, extra_options=options))
    result = quantizer.quantize_model(model)
    (warning,) = quantizer.report.warnings
    assert "random data" in warning
    assert warning in caplog.text
    assert warning in quantizer.report.full(300)
    data = RandomDataReader(model, [64, 12], seed=1).get_next()
    assert mean_squared_error(model, result, data) < 0.3
    again = ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, RandomDataReader(model, [64, 12]))
    assert again.graph == result.graph


def test_without_data_there_is_no_work(tmp_path: Path) -> None:
    quantizer = ModelQuantizer(CONFIG)
    with pytest.raises(DataError, match="calibration data is needed"):
        quantizer.quantize_model(tmp_path / "absent.onnx")
    with pytest.raises(FileNotFoundError, match="there is no folder of calibration data"):
        quantizer.quantize_model(mlp(), tmp_path / "out.onnx", calibration_data_path=tmp_path / "absent")
    assert list(tmp_path.iterdir()) == []
