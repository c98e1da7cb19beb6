"""CachedDataReader, RandomDataReader, PathDataReader and get_data_reader."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import build, embedding, mlp, separable_cnn

from quark.onnx import CachedDataReader, DataError, ModelError, PathDataReader, RandomDataReader, get_data_reader
from quark.onnx.calibration_data.checked_items import Batch, DataReader, checked_items, model_inputs

IMAGE = separable_cnn()
ANY = "(float[N,C,H,W] image, float[N,K] vector, float[A,B,D] cube, int64[N] ids, bool[N] flags) => (float[N] y)"


class Reader:
    """It gives some items, all in one piece of memory, and counts what was read."""

    def __init__(self, items: list[Any]) -> None:
        self._items: Iterator[Any] = iter(items)
        self._memory = np.empty((1, 12), np.float32)
        self.read = 0

    def get_next(self) -> Any:
        self.read += 1
        item = next(self._items, None)
        if isinstance(item, (int, float)):
            self._memory[:] = item
            return {"x": self._memory}
        return item


def drained(reader: DataReader) -> list[Batch]:
    return list(iter(reader.get_next, None))


def values(batches: list[Batch]) -> list[float]:
    return [float(batch["x"].flat[0]) for batch in batches]


def test_a_cache_reads_what_is_needed_once_and_gives_it_again() -> None:
    source = Reader([1, 2, 3])
    reader = CachedDataReader(source)
    assert source.read == 1, "one, to see that there is one"
    assert values([reader.get_next(), reader.get_next()]) == [1, 2]
    assert source.read == 2
    reader.reset_iter()
    assert values(drained(reader)) == [1, 2, 3]
    assert reader.get_next() is None
    reader.rewind()
    assert values(list(reader)) == [1, 2, 3]
    assert source.read == 4, "three items and the end"
    assert len(reader) == 3


def test_the_length_of_a_cache_is_known_before_it_is_read() -> None:
    reader = CachedDataReader(Reader([1, 2, 3]))
    assert len(reader) == 3
    assert values(drained(reader)) == [1, 2, 3]


def test_a_cache_of_the_first_items() -> None:
    source = Reader([1, 2, 3])
    reader = CachedDataReader(source, 2)
    assert values(drained(reader)) == [1, 2]
    assert (len(reader), source.read) == (2, 2)


def test_what_a_cache_gives_is_the_callers() -> None:
    reader = CachedDataReader(Reader([1]))
    reader.get_next().clear()
    reader.reset_iter()
    assert set(reader.get_next()) == {"x"}


def test_a_cache_converts() -> None:
    x = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    item = {"x": x, "ids": np.arange(3)}
    reader = CachedDataReader(Reader([item]), convert_nchw_to_nhwc=True, quantize_fp16=True)
    found = reader.get_next()
    np.testing.assert_array_equal(found["x"], np.moveaxis(x, 1, 3).astype(np.float16), strict=True)
    np.testing.assert_array_equal(found["ids"], item["ids"], strict=True)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "No data in the input calibration data reader"),
        ([{}], "No data in the input calibration data reader"),
        ([np.ones(3)], "item 0 of the calibration data reader is a ndarray: yield a dict"),
        ([{"x": [1.0]}], "item 0 of the calibration data reader: 'x' is a list: yield a NumPy array"),
    ],
)
def test_a_cache_of_what_is_no_data(items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        CachedDataReader(Reader(items))


def test_a_cache_says_which_item_is_wrong() -> None:
    reader = CachedDataReader(Reader([1, {"x": None}]))
    assert values([reader.get_next()]) == [1]
    with pytest.raises(DataError, match="item 1 of the calibration data reader: 'x' is a NoneType"):
        reader.get_next()


def inputs_only(text: str) -> onnx.ModelProto:
    """A model of which nothing but the inputs counts."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text} {{ y = Identity(y0) }}')


def test_random_shapes_and_types() -> None:
    reader = RandomDataReader(inputs_only(ANY), items=3)
    items = drained(reader)
    assert len(items) == len(reader) == 3
    for item in items:
        assert {name: (x.shape, x.dtype.name) for name, x in item.items()} == {
            "image": ((1, 3, 32, 32), "float32"),
            "vector": ((1, 16), "float32"),
            "cube": ((1, 1, 1), "float32"),
            "ids": ((1,), "int64"),
            "flags": ((1,), "bool"),
        }
        assert 0 <= item["image"].min() < 0.01 < 0.99 < item["image"].max() <= 1
        assert item["ids"] == 0
    assert not np.array_equal(items[0]["image"], items[1]["image"])


def test_random_data_depends_on_the_seed_alone() -> None:
    first, again, other = (RandomDataReader(IMAGE, seed=seed, items=2) for seed in (42, 42, 43))
    a, b, c = drained(first), drained(again), drained(other)
    np.testing.assert_array_equal(a[0]["x"], b[0]["x"])
    np.testing.assert_array_equal(a[1]["x"], c[0]["x"])
    first.reset_iter()
    np.testing.assert_array_equal(first.get_next()["x"], a[0]["x"])
    np.random.seed(42)
    np.testing.assert_array_equal(a[0]["x"], np.random.random((1, 3, 8, 8)).astype(np.float32))


@pytest.mark.parametrize("kind", [0, 99])
def test_an_input_of_an_unknown_type(kind: int) -> None:
    model = build("(float[N,3] x) => (float[N,3] y) { y = Neg(x) }")
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(ModelError, match=f"the input 'x' has the data type {kind}"):
        RandomDataReader(model)


def test_random_ranges() -> None:
    ranges = {"image": (-2, 3), "vector": (5, 5), "cube": [0.5, 1], "ids": [3, 6], "flags": [0, 1]}
    shapes = {"ids": [500], "image": (2, 1, 9, 9)}
    item = RandomDataReader(inputs_only(ANY), shapes, ranges).get_next()
    assert item["image"].shape == (2, 1, 9, 9)
    assert -2 <= item["image"].min() < -1.5 < 2.5 < item["image"].max() <= 3
    assert (item["vector"] == 5).all()
    assert 0.5 <= item["cube"] <= 1
    assert set(item["ids"].tolist()) == {3, 4, 5, 6}


def test_a_shape_alone_is_that_of_the_only_input() -> None:
    assert RandomDataReader(IMAGE, [7, 3, 8, 8]).get_next()["x"].shape == (7, 3, 8, 8)
    assert RandomDataReader(IMAGE, []).get_next()["x"].shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": [1, 3, 8, 8]}, "for the inputs image, vector, cube, ids, flags: give a dict from input to sh"),
        ({"input_shape": {"images": [1]}}, r"input_shape: 'images' is no input of the model: \['image', 'vector'"),
        ({"input_shape": {"image": [1]}}, r"input_shape of 'image': got \(1,\), the model takes \(None, None, None"),
        ({"input_shape": {"ids": [0]}}, r"input_shape of 'ids': got \(0,\)"),
        ({"input_data_range": {"image": (0, 1)}}, r"input_data_range: input 'vector' is missing: give \(lowest"),
    ],
)  # fmt: skip
def test_random_data_that_cannot_be_drawn(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        RandomDataReader(inputs_only(ANY), **arguments)


def test_random_data_for_a_fixed_shape_and_for_an_unknown_rank() -> None:
    with pytest.raises(DataError, match=r"input_shape of 'x': got \(1, 3, 8, 9\), the model takes \(None, 3, 8, 8\)"):
        RandomDataReader(IMAGE, [1, 3, 8, 9])
    model = inputs_only("(float[N] x) => (float[N] y)")
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(DataError, match="input 'x' has no known rank: give its input_shape"):
        RandomDataReader(model)
    assert RandomDataReader(model, {"x": [2, 5]}).get_next()["x"].shape == (2, 5)


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / name, array)
    return folder


def test_files_of_a_folder_in_the_order_of_their_names(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 12))
    arrays = {"b.npy": x[1:2].astype(np.float32), "c.npy": x[2], "a.npy": x[:1].astype(np.float16)}
    folder = saved(tmp_path / "data", arrays)
    (folder / "notes.txt").write_text("nothing")
    saved(folder / "below", {"d.npy": x})
    reader = PathDataReader(mlp(), folder)
    items = drained(reader)
    assert len(reader) == len(items) == 3
    assert all(item["x"].shape == (1, 12) and item["x"].dtype == np.float32 for item in items)
    np.testing.assert_allclose(np.concatenate([item["x"] for item in items]), x, rtol=1e-3)
    reader.reset_iter()
    assert len(list(checked_items(reader, model_inputs(mlp())))) == 3


def test_a_folder_for_each_input(tmp_path: Path) -> None:
    for index in range(2):
        saved(tmp_path / "tokens", {f"{index}": np.full((4, 6), index, np.int32)})
        saved(tmp_path / "importance", {f"{index}": np.full((4, 6, 1), index / 2, np.float64)})
    items = drained(PathDataReader(embedding(), str(tmp_path)))
    assert [(item["tokens"].max(), item["importance"].max()) for item in items] == [(0, 0), (1, 0.5)]
    assert items[0]["tokens"].dtype == np.int64


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside", "..", ""])
def test_the_models_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    for place in (folder, folder / "a", folder / "b", tmp_path / "outside"):
        place.mkdir()
        np.save(place / "0.npy", np.zeros((1, 3), np.float32))
    given = name if name != "/outside" else str(tmp_path / "outside")
    model = build("(float[N,3] x, float[N,3] b) => (float[N,3] y) { y = Add(x, b) }")
    model.graph.input[0].name = model.graph.node[0].input[0] = given
    with pytest.raises(DataError, match="is the name of no folder below"):
        PathDataReader(model, folder)


def test_a_cache_of_masked_arrays_and_of_a_bare_next() -> None:
    class Bare:
        get_next = staticmethod(iter([{"x": np.ones(1)}, {"x": np.ma.masked_less(np.ones(1), 2)}]).__next__)

    with pytest.raises(DataError, match=r"item 1 .*masked array"):
        len(CachedDataReader(Bare()))
    Bare.get_next = staticmethod(iter([{"x": np.ones(1)}]).__next__)
    assert len(CachedDataReader(Bare())) == 1


def test_a_folder_of_the_name_of_the_only_input(tmp_path: Path) -> None:
    saved(tmp_path / "x", {"0": np.ones((1, 12), np.float32)})
    assert len(drained(PathDataReader(mlp(), tmp_path))) == 1


def test_images_and_what_makes_arrays_of_them(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/0.JPG", "dogs/2.jpeg", "3.bmp", "labels.txt", "dogs/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    asked: list[Path] = []

    def preprocess(file: Path) -> np.ndarray:
        asked.append(file)
        return np.full((3, 8, 8), int(file.stem), np.uint8)

    reader = PathDataReader(IMAGE, tmp_path, preprocess=preprocess)
    assert asked == [], "each file when it is its turn"
    items = drained(reader)
    assert [int(item["x"][0, 0, 0, 0]) for item in items] == [3, 0, 1, 2]
    assert {item["x"].shape for item in items} == {(1, 3, 8, 8)}
    names = [file.relative_to(tmp_path).as_posix() for file in asked]
    assert names == ["3.bmp", "cats/0.JPG", "cats/1.png", "dogs/2.jpeg"]


def test_a_file_of_several_samples(tmp_path: Path) -> None:
    saved(tmp_path, {"all.npy": np.ones((10, 12), np.float32)})
    assert PathDataReader(mlp(), tmp_path).get_next()["x"].shape == (10, 12)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((1, 13)), r"file '.*0.npy': input 'x' has the shape \(1, 13\): the model takes \(\?, 12\)"),
        (np.ones((1, 2, 12)), r"has the shape \(1, 2, 12\)"),
        (np.full((1, 12), np.nan), "file '.*0.npy': input 'x' contains NaN or Inf"),
        (np.array(["a"]), "file '.*0.npy' holds <U1, which the input 'x' of float32 cannot take"),
        (np.array([{}]), "file '.*0.npy' cannot be read as .npy: ValueError: Object arrays"),
    ],
)
def test_files_that_hold_something_else(tmp_path: Path, array: np.ndarray, message: str) -> None:
    reader = PathDataReader(mlp(), saved(tmp_path, {"0": array}))
    with pytest.raises(DataError, match=message):
        reader.get_next()


def test_fractions_are_not_lost(tmp_path: Path) -> None:
    saved(tmp_path / "tokens", {"0": np.full((1, 6), 0.5)})
    saved(tmp_path / "importance", {"0": np.ones((1, 6, 1))})
    with pytest.raises(DataError, match="holds float64, which the input 'tokens' of int64 cannot take"):
        PathDataReader(embedding(), tmp_path).get_next()


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    file = saved(tmp_path, {"0": np.ones((1, 12), np.float32)}) / "0.npy"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(DataError, match=re.escape(f"file {str(file)!r} cannot be read as .npy")):
        PathDataReader(mlp(), tmp_path).get_next()


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        (lambda _: [1.0], "preprocess\\(\\) returned a list: return a NumPy array"),
        (lambda _: 1 / 0, "file '.*0.png' makes preprocess\\(\\) fail: ZeroDivisionError"),
        (lambda _: np.ones((4, 4)), r"has the shape \(4, 4\)"),
    ],
)
def test_a_function_that_makes_no_array(tmp_path: Path, preprocess: Any, message: str) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=message):
        PathDataReader(IMAGE, tmp_path, preprocess=preprocess).get_next()


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder of calibration data at '.*absent'"):
        PathDataReader(mlp(), tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"there is no \.npy file in"):
        PathDataReader(mlp(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no \.npy file and no image in"):
        PathDataReader(mlp(), tmp_path, preprocess=np.load)
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="give preprocess, which makes arrays of the images there"):
        PathDataReader(IMAGE, tmp_path)
    with pytest.raises(NotADirectoryError, match=r"0.png' is a file: give the folder that it lies in"):
        PathDataReader(IMAGE, tmp_path / "0.png")
    (tmp_path / "tokens").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no folder 'importance': the model's inputs are \['tokens', 'imp"):
        PathDataReader(embedding(), tmp_path)


def test_inputs_with_different_numbers_of_files(tmp_path: Path) -> None:
    saved(tmp_path / "tokens", {"0": np.ones((1, 6)), "1": np.ones((1, 6))})
    saved(tmp_path / "importance", {"0": np.ones((1, 6, 1))})
    with pytest.raises(DataError, match=r"different numbers of files in .*\{'tokens': 2, 'importance': 1\}"):
        PathDataReader(embedding(), tmp_path)


def test_the_shape_that_data_is_to_have(tmp_path: Path) -> None:
    model = build("(float[N,M] x) => (float[N,M] y) { y = Relu(x) }")
    saved(tmp_path, {"0": np.ones((1, 4), np.float32)})
    assert PathDataReader(model, tmp_path, [1, 4]).get_next()["x"].shape == (1, 4)
    with pytest.raises(DataError, match=r"has the shape \(1, 4\): the model takes \(1, 5\)"):
        PathDataReader(model, tmp_path, {"x": [1, 5]}).get_next()


def test_where_data_comes_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, {"0": np.ones((1, 12), np.float32)})
    onnx.save(mlp(), tmp_path / "model.onnx")
    mine = Reader([1])
    assert get_data_reader(mlp(), mine) is mine
    with caplog.at_level(logging.WARNING):
        assert get_data_reader(mlp(), mine, tmp_path, {"UseRandomData": True}) is mine
    assert "comes from the reader" in caplog.text
    assert values([get_data_reader(tmp_path / "model.onnx", None, tmp_path, {"UseRandomData": True}).get_next()]) == [1]
    options = {
        "UseRandomData": True,
        "RandomDataReaderInputShape": {"x": [3, 12]},
        "RandomDataReaderInputDataRange": {"x": [5, 6]},
    }
    random = get_data_reader(str(tmp_path / "model.onnx"), extra_options=options).get_next()
    assert random["x"].shape == (3, 12)
    assert random["x"].min() >= 5
    for nothing in ({}, {"UseRandomData": False}):
        with pytest.raises(DataError, match=r"reader is needed: .* calibration_data_path, a folder .* UseRandomData"):
            get_data_reader(mlp(), extra_options=nothing)
    assert values([get_data_reader(mlp(), str(tmp_path)).get_next()]) == [1]
    with pytest.raises(DataError, match=r"an object with get_next\(\), .*; not int"):
        get_data_reader(mlp(), 7)  # type: ignore[arg-type]
