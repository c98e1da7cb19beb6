"""data_reader: arrays, items, files and folders in the place of a reader."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import Reader, build, embedding, mlp, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    DataError,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    finetune,
)
from quark.onnx.calibration_data.any_data import data_reader

IMAGES = samples(separable_cnn(), 5)["x"]
TOKENS = samples(embedding(), 5)
FIXED = build("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }")


def read(data: object, model: onnx.ModelProto) -> list[dict[str, np.ndarray]]:
    reader = data_reader(data, model)
    return list(iter(reader.get_next, None))


def joined(items: list[dict[str, np.ndarray]], name: str = "x") -> np.ndarray:
    return np.concatenate([item[name] for item in items])


class Tensor:
    """What PyTorch's looks like from outside: with a gradient, it does not convert itself."""

    def __init__(self, values: np.ndarray, *, attached: bool = True) -> None:
        self._values, self._attached = values, attached

    def detach(self) -> Tensor:
        return Tensor(self._values, attached=False)

    def cpu(self) -> Tensor:
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self._attached:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")
        return np.array(self._values, dtype, copy=copy)


class OnlyDlpack:
    """A tensor that NumPy takes by DLPack alone."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __dlpack__(self, **keywords: Any) -> object:
        return self._values.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._values.__dlpack_device__()


FORMS: dict[str, Callable[[np.ndarray], object]] = {
    "an array": lambda x: x,
    "float64": lambda x: x.astype(np.float64),
    "a dict": lambda x: {"x": x},
    "a list of samples": list,
    "a list of batches": lambda x: [x[:2], x[2:]],
    "an iterator": iter,
    "a generator of dicts": lambda x: ({"x": part} for part in x),
    "tuples": lambda x: [(part,) for part in x],
    "a tensor": Tensor,
    "a tensor by DLPack": OnlyDlpack,
    "a list of tensors": lambda x: [Tensor(part) for part in x],
    "a reader": lambda x: Reader({"x": x}),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_samples(form: Callable[[np.ndarray], object]) -> None:
    items = read(form(IMAGES), separable_cnn())
    assert np.array_equal(joined(items), IMAGES)
    assert all(item["x"].dtype == np.float32 for item in items)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files(suffix: str, as_text: bool, tmp_path: Path) -> None:
    path = tmp_path / f"data.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, IMAGES)
    assert np.array_equal(joined(read(str(path) if as_text else path, separable_cnn())), IMAGES)


def test_a_file_of_several_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **TOKENS)
    items = read(tmp_path / "data.npz", embedding())
    assert len(items) == 5
    for name, array in TOKENS.items():
        assert np.array_equal(joined(items, name), array)


def test_a_folder(tmp_path: Path) -> None:
    for index, image in enumerate(IMAGES):
        np.save(tmp_path / f"{index}.npy", image)
    assert np.array_equal(joined(read(tmp_path, separable_cnn())), IMAGES)


def test_several_inputs_in_items() -> None:
    for data in (TOKENS, [tuple(array[i : i + 1] for array in TOKENS.values()) for i in range(5)]):
        items = read(data, embedding())
        for name, array in TOKENS.items():
            assert np.array_equal(joined(items, name), array)


@given(st.integers(1, 9))
def test_a_model_of_a_fixed_batch_gets_that_many_samples_at_a_time(count: int) -> None:
    x = np.arange(4 * count, dtype=np.float32).reshape(count, 4)
    items = read(x, FIXED)
    if count == 1:  # refused later, with the model's shape
        assert [item["x"].shape for item in items] == [(1, 4)]
        return
    assert {item["x"].shape for item in items} == {(2, 4)}
    assert np.array_equal(joined(items), x[: count // 2 * 2])


def test_samples_that_fill_no_batch_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read(np.ones((5, 4), np.float32), FIXED)
    assert "the last 1 samples of input 'x' are not used: the model takes 2 at a time" in caplog.text


def test_a_model_without_an_axis_of_samples() -> None:
    model = build("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
    x = np.arange(24, dtype=np.float32).reshape(3, 2, 4)
    assert np.array_equal(np.stack([item["x"] for item in read(x, model)]), x)


def test_integers_of_another_width() -> None:
    narrow = {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in TOKENS.items()}
    assert read(narrow, embedding())[0]["tokens"].dtype == np.int64
    model = build("(int32[N] x) => (int32[N] y) { y = Add(x, x) }")
    kept = read(np.array([1 << 40]), model)
    assert kept[0]["x"].dtype == np.int64  # it does not fit, and is refused as what it is


WRONG = {
    "a set": (lambda: {1}, "calibration data is needed: .*; not set"),
    "None": (lambda: None, "calibration data is needed: .*; not NoneType"),
    "a class": (lambda: Reader, r"Reader is a class: give an instance, Reader\(\)"),
    "a wrong name": (lambda: {"image": IMAGES}, r"has the names \['image'\]: the inputs are \['x'\]"),
    "images and labels": (lambda: [(IMAGES[:1], np.ones(1))], r"2 arrays.*images for images, labels in loader"),
    "numbers": (lambda: [1.0, 2.0], "item 0 of the calibration data is a float"),
    "a list of lists": (lambda: [[[1.0]]], "item 0 of the calibration data is a list"),
    "a dict of lists": (lambda: {"x": [1.0]}, "input 'x' is a list: give an array"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_other_forms_are_refused(data: Callable[[], object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(data(), separable_cnn())


def test_one_array_for_several_inputs() -> None:
    with pytest.raises(DataError, match=r"an array is for a model of one input, and the inputs are \['tokens', "):
        read(TOKENS["tokens"], embedding())


def test_different_numbers_of_samples() -> None:
    with pytest.raises(DataError, match="different numbers of samples"):
        read({name: array[: 3 if name == "tokens" else 5] for name, array in TOKENS.items()}, embedding())


def test_preprocessing_is_for_folders() -> None:
    with pytest.raises(DataError, match="preprocess is for the files of a folder, and the data is a ndarray"):
        data_reader(IMAGES, separable_cnn(), preprocess=np.load)


def test_an_error_of_the_iterator_comes_through() -> None:
    def failing() -> Iterator[np.ndarray]:
        yield IMAGES[:1]
        raise KeyError("mine")

    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))
    with pytest.raises(KeyError, match="mine"):
        ModelQuantizer(config).quantize_model(separable_cnn(), None, failing())


def quantized(data: object) -> onnx.ModelProto:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
    return ModelQuantizer(config).quantize_model(separable_cnn(), None, data)


def test_a_run_on_an_array_is_the_run_on_a_reader() -> None:
    x = samples(separable_cnn(), 12)["x"]
    by_array, by_reader = quantized(x), quantized(Reader({"x": x}))
    assert by_array == by_reader
    plain = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
        separable_cnn(), None, x
    )
    finetuned = [finetune(separable_cnn(), plain, None, data, AdaRoundConfig())[0] for data in (x, Reader({"x": x}))]
    assert finetuned[0] == finetuned[1]


def test_what_users_get_wrong_is_told_in_their_words() -> None:
    with pytest.raises(DataError, match=r"x.transpose\(0, 3, 1, 2\)"):
        quantized(IMAGES.transpose(0, 2, 3, 1))
    with pytest.raises(DataError, match="images of 0 to 255 are most often divided by 255"):
        quantized((IMAGES * 10).astype(np.uint8))
    with pytest.raises(DataError, match=r"takes \(2, 4\). Its batch is fixed: give 2 at a time, or export"):
        ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
            FIXED, None, Reader({"x": np.ones((3, 4), np.float32)}, batch=3)
        )


def test_mlp_by_path(tmp_path: Path) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    x = samples(mlp(), 3)["x"]
    assert np.array_equal(joined(list(iter(data_reader(x, tmp_path / "m.onnx").get_next, None))), x)
