from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.model_files.model_file import load_model
from quark.onnx.model_files.saved_model import save_model


@pytest.fixture
def model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }'
    )
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    return model


def result(model: onnx.ModelProto | str) -> np.ndarray:
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.eye(64, dtype=np.float32)})[0]


def files(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_a_proto_is_copied(model):
    loaded = load_model(model, role="model")
    loaded.graph.node[0].op_type = "Add"
    assert model.graph.node[0].op_type == "MatMul"


@pytest.mark.parametrize("as_path", [str, Path])
def test_saved_model_loads_equal(model, tmp_path, as_path):
    path = as_path(tmp_path / "m.onnx")
    save_model(model, path)
    assert load_model(path, role="model") == model
    assert files(tmp_path) == ["m.onnx"]


def test_external_data_goes_to_one_file_and_comes_back(model, tmp_path):
    path = tmp_path / "m.onnx"
    before = model.SerializeToString()
    save_model(model, path, external_data=True)
    assert len(files(tmp_path)) == 2
    assert path.stat().st_size < 1000
    assert model.SerializeToString() == before
    loaded = load_model(path, role="model")
    np.testing.assert_array_equal(result(loaded), result(model))
    np.testing.assert_array_equal(result(str(path)), result(model))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no float model at .*absent\.onnx"):
        load_model(tmp_path / "absent.onnx", role="float model")


def test_directory_is_refused(tmp_path):
    with pytest.raises(IsADirectoryError, match="directory"):
        load_model(tmp_path, role="model")


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="not int"):
        load_model(3, role="model")  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"this is no model", os.urandom(4096)], ids=["empty", "text", "noise"])
def test_not_onnx(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_model(path, role="model")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_truncated(model, tmp_path, share):
    content = model.SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_model(path, role="model")


def test_external_data_short_or_missing(model, tmp_path):
    path = tmp_path / "m.onnx"
    save_model(model, path, external_data=True)
    (data,) = tmp_path.glob("*.data")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load_model(path, role="model")
    data.unlink()
    with pytest.raises((ModelError, FileNotFoundError), match=r"m\.onnx"):
        load_model(path, role="model")


def test_a_proto_without_its_external_data(model, tmp_path):
    save_model(model, tmp_path / "m.onnx", external_data=True)
    with pytest.raises(ModelError, match="pass the model's path"):
        load_model(onnx.load(tmp_path / "m.onnx", load_external_data=False), role="model")
