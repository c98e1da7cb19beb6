"""What users get wrong: each mistake has a message that says what, where and what to do; no file is left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import MODELS, Arrays, Reader, Weights, build, embedding, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    ConfigError,
    DataError,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuarkError,
    UInt8Spec,
)

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
OLD = b"what was there before"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds float.onnx, a small classifier, and q.onnx, an older result."""
    onnx.save(separable_cnn(), tmp_path / "float.onnx")
    (tmp_path / "q.onnx").write_bytes(OLD)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest) -> object:
    """Every test that has a folder leaves its files and their content as they were."""
    if "folder" not in request.fixturenames:
        yield
        return
    folder = request.getfixturevalue("folder")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def quantize(model: object, output: object, reader: object, algorithm: AdaRoundConfig | None = None) -> object:
    config = QConfig(LAYER, algo_config=[algorithm or AdaRoundConfig()])
    return ModelQuantizer(config).quantize_model(model, output, reader)


def items(*items: object) -> object:
    """A reader that yields these items."""

    class Items:
        get_next = staticmethod(iter([*items, None]).__next__)

    return Items()


def good(count: int = 12) -> Reader:
    return Reader(samples(separable_cnn(), count))


# ---- the model -----------------------------------------------------------------------------------


def test_no_such_file(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no float model at '.*absent\.onnx'"):
        quantize(folder / "absent.onnx", folder / "q.onnx", good())


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", bytes(range(256))], ids=["empty", "image", "noise"])
def test_not_onnx(folder: Path, content: bytes) -> None:
    (folder / "float.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"float\.onnx"):
        quantize(folder / "float.onnx", None, good())
    onnx.save(separable_cnn(), folder / "float.onnx")


def test_neither_a_path_nor_a_model() -> None:
    with pytest.raises(TypeError, match=r"must be a path or an onnx\.ModelProto, not int"):
        quantize(3, None, good())


def test_already_quantized(folder: Path) -> None:
    quantized = ModelQuantizer(QConfig(LAYER)).quantize_model(folder / "float.onnx", None, good())
    with pytest.raises(ModelError, match=r"quantized already.*quark\.onnx\.finetune\(\)"):
        quantize(quantized, folder / "q.onnx", good())


def test_a_model_that_onnxruntime_cannot_run(folder: Path) -> None:
    model = separable_cnn()
    model.graph.node[0].op_type = "Convolution"
    with pytest.raises(ModelError, match="Convolution"):
        quantize(model, folder / "q.onnx", good())


# ---- the reader ----------------------------------------------------------------------------------


def wrong(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array[-1, 0, 2, 3] = value
    return array


X = samples(separable_cnn(), 2)["x"]
BAD_ITEMS = {
    "wrong name": ({"image": X}, r"has the names \['image'\]: the model's inputs are \['x'\]"),
    "a name too many": ({"x": X, "z": X}, r"has the names \['x', 'z'\]: the model's"),
    "wrong channels": ({"x": X[:, :2]}, r"'x' has the shape \(2, 2, 8, 8\): the model takes \(\?, 3, 8, 8\)"),
    "no batch axis": ({"x": X[0]}, r"input 'x' has the shape \(3, 8, 8\): the model takes \(\?, 3, 8, 8\)"),
    "empty": ({"x": X[:0]}, r"input 'x' has the shape \(0, 3, 8, 8\) and is empty"),
    "wrong type": ({"x": X.astype(np.float64)}, r"input 'x' is float64: the model takes float32.*astype"),
    "integers": ({"x": X.astype(np.uint8)}, r"input 'x' is uint8: the model takes float32"),
    "NaN": ({"x": wrong(X, np.nan)}, r"input 'x' contains NaN or Inf"),
    "Inf": ({"x": wrong(X, np.inf)}, r"input 'x' contains NaN or Inf: clean the data"),
    "-Inf": ({"x": wrong(X, -np.inf)}, r"input 'x' contains NaN or Inf: for a mask, give -1e4"),
    "None": ({"x": None}, r"input 'x' is a NoneType: yield a NumPy array"),
    "a list of numbers": ({"x": X.tolist()}, r"input 'x' is a list: yield a NumPy array"),
    "a bare array": (X, r"is a ndarray: yield a dict from input name to NumPy array"),
    "a tuple": ((X, 3), r"is a tuple: yield a dict from input name to NumPy array"),
    "a number": (7, r"is a int: yield a dict"),
    "zero": (0, r"is a int: yield a dict"),
}  # fmt: skip


@pytest.mark.parametrize(("item", "message"), BAD_ITEMS.values(), ids=BAD_ITEMS)
def test_a_bad_item(item: object, message: str, folder: Path) -> None:
    with pytest.raises(DataError, match=f"item 1 of the calibration data reader.* {message}"):
        quantize(folder / "float.onnx", folder / "q.onnx", items({"x": X}, item))


def test_bad_integers(folder: Path) -> None:
    model = embedding()
    data = {name: array[:1] for name, array in samples(model, 1).items()}
    with pytest.raises(DataError, match="input 'tokens' is int32: the model takes int64"):
        quantize(model, folder / "q.onnx", items({**data, "tokens": data["tokens"].astype(np.int32)}))
    outside = {**data, "tokens": data["tokens"] + 20}  # the table has 20 rows
    with pytest.raises(DataError, match=r"cannot run on calibration data of shape .*'tokens': \(1, 6\)"):
        quantize(model, folder / "q.onnx", items(outside))


@pytest.mark.parametrize("reader", [lambda: items(), lambda: items({})], ids=["nothing", "an empty dict"])
def test_an_empty_reader(reader: Callable[[], object], folder: Path) -> None:
    with pytest.raises(DataError, match="the calibration data reader yields nothing"):
        quantize(folder / "float.onnx", folder / "q.onnx", reader())


@pytest.mark.parametrize("reader", [None, 7, {1, 2}, b"x"], ids=["None", "a number", "a set", "bytes"])
def test_no_reader(reader: object, folder: Path) -> None:
    with pytest.raises(DataError, match=r"calibration data is needed: an object with get_next\(\), an array, .*; not"):
        quantize(folder / "float.onnx", folder / "q.onnx", reader)


def test_a_reader_that_fails(folder: Path) -> None:
    class Failing(Reader):
        def get_next(self) -> Arrays | None:
            raise OSError("image 3 is gone")

    with pytest.raises(OSError, match="image 3 is gone"):
        quantize(folder / "float.onnx", folder / "q.onnx", Failing(samples(separable_cnn(), 4)))


def test_a_model_that_makes_nan_of_good_data(folder: Path) -> None:
    w = Weights(0)
    model = build(
        """(float[N,4] x) => (float[N,4] y) { [log] t = Log(x) [gemm] y = Gemm(t, w, b) }""",
        w=w.conv(4, 4), b=w.bias(4),
    )  # fmt: skip
    with pytest.raises(DataError, match=r"the float model's output 'y' becomes NaN on calibration data"):
        quantize(model, folder / "q.onnx", Reader({"x": -np.ones((8, 4), np.float32)}))


# ---- the configuration ---------------------------------------------------------------------------


def test_data_size_zero() -> None:
    with pytest.raises(ConfigError, match="data_size"):
        AdaRoundConfig(data_size=0)


def test_both_algorithms() -> None:
    with pytest.raises(ValueError, match="only one of AdaRoundConfig and AdaQuantConfig"):
        QConfig(LAYER, algo_config=[AdaRoundConfig(), AdaQuantConfig()])


def test_an_unknown_node_to_exclude(folder: Path) -> None:
    config = QConfig(LAYER, exclude=["stemm"])
    with pytest.raises(ConfigError, match="stem"):
        ModelQuantizer(config).quantize_model(folder / "float.onnx", folder / "q.onnx", good())


def test_a_configuration_of_another_kind() -> None:
    with pytest.raises(TypeError, match="ModelQuantizer takes a QConfig, not QLayerConfig"):
        ModelQuantizer(LAYER)  # type: ignore[arg-type]


# ---- the output ----------------------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True], ids=["quantize_model", "finetune"])
def test_an_output_path_that_cannot_be_written(quantized: bool, folder: Path) -> None:
    (folder / "sub").mkdir()
    read = []

    class Watched(Reader):
        def get_next(self) -> Arrays | None:
            read.append(1)
            return super().get_next()

    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(folder / "float.onnx", None, good())

    def attempt(output: Path) -> None:
        reader = Watched(samples(separable_cnn(), 4))
        if quantized:
            quark.onnx.finetune(folder / "float.onnx", plain, output, reader, AdaRoundConfig())
        else:
            quantize(folder / "float.onnx", output, reader)

    with pytest.raises(IsADirectoryError, match=r"the output path '.*sub' is a directory: add a file name"):
        attempt(folder / "sub")
    with pytest.raises(FileNotFoundError, match="lies in a directory that does not exist: create it first"):
        attempt(folder / "absent" / "q.onnx")
    with pytest.raises(NotADirectoryError, match="lies below a file"):
        attempt(folder / "q.onnx" / "q.onnx")
    with pytest.raises(OSError, match="would overwrite the input model"):
        attempt(folder / "float.onnx")
    if os.geteuid() != 0:
        (folder / "sub").chmod(0o500)
        with pytest.raises(PermissionError, match="cannot be written"):
            attempt(folder / "sub" / "q.onnx")
    assert read == [], "a bad path shows before any work"


def test_a_cache_dir_that_is_a_file(folder: Path) -> None:
    config = AdaRoundConfig(mem_opt_level=2, cache_dir=str(folder / "q.onnx"))
    with pytest.raises(OSError, match=r"cache_dir '.*q\.onnx'"):
        quantize(folder / "float.onnx", None, good(), config)


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_while_data_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cache").mkdir()
    config = AdaRoundConfig(mem_opt_level=2, cache_dir=str(folder / "cache"))
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"cannot be kept in cache_dir '.*cache'.*No space left .*another cache_dir"):
        quantize(folder / "float.onnx", folder / "q.onnx", good(), config)
    assert os.listdir(folder / "cache") == []


def test_a_disk_that_is_full_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        quantize(folder / "float.onnx", folder / "q.onnx", good())


# ---- the finetune function -----------------------------------------------------------------------


def test_finetune_of_a_float_model(folder: Path) -> None:
    with pytest.raises(ModelError, match="the quantized model has no Q/DQ: quantize it first"):
        quark.onnx.finetune(separable_cnn(), folder / "float.onnx", folder / "q.onnx", good(), AdaRoundConfig())


def test_finetune_towards_a_quantized_model(folder: Path) -> None:
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(folder / "float.onnx", None, good())
    with pytest.raises(ModelError, match="the float model is quantized: pass the model that the quantized one"):
        quark.onnx.finetune(plain, plain, folder / "q.onnx", good(), AdaRoundConfig())


def test_finetune_towards_another_model(folder: Path) -> None:
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(folder / "float.onnx", None, good())
    for other in (separable_cnn(seed=7), MODELS["residual"]()):
        with pytest.raises(ModelError, match=r"no layer can be finetuned: .*(not near|no such layer)"):
            quark.onnx.finetune(other, plain, folder / "q.onnx", Reader(samples(other, 12)), AdaRoundConfig())


def test_finetune_without_an_algorithm(folder: Path) -> None:
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(folder / "float.onnx", None, good())
    for config in (QConfig(LAYER), LAYER, None):
        with pytest.raises(ConfigError, match="finetune needs AdaRoundConfig or AdaQuantConfig"):
            quark.onnx.finetune(folder / "float.onnx", plain, None, good(), config)  # type: ignore[arg-type]


def test_all_errors_are_of_one_family() -> None:
    for name in quark.onnx.__all__:
        if name.endswith("Error"):
            assert issubclass(getattr(quark.onnx, name), QuarkError)
