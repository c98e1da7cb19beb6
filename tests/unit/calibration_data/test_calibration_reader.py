"""What a data reader may yield, what is said of the rest, and how items become batches."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import build

from quark.onnx.calibration_data.checked_items import (
    ModelInput,
    checked_items,
    checked_reader,
    first_samples,
    model_inputs,
    sample_count,
)
from quark.onnx.errors import DataError

INPUTS = (
    ModelInput("x", np.dtype(np.float32), (None, 3)),
    ModelInput("ids", np.dtype(np.int64), (None, 2, None)),
)


class Yields:
    """A reader of these items."""

    def __init__(self, *items: Any) -> None:
        self._items = iter(items)

    def get_next(self) -> Any:
        return next(self._items, None)


def item(count: int = 1, **changes: Any) -> dict[str, Any]:
    return {"x": np.ones((count, 3), np.float32), "ids": np.zeros((count, 2, 5), np.int64), **changes}


def test_the_inputs_of_a_model():
    model = build(
        """(float[N,3,8] x, int64[1] n, float16 h) => (float[N,3,8] y, int64[1] m, float16 i) {
            y = Mul(x, w)  m = Identity(n)  i = Identity(h)
        }""",
        w=np.ones(8),
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [8]))
    model.graph.input[2].type.tensor_type.ClearField("shape")
    assert model_inputs(model) == (
        ModelInput("x", np.dtype(np.float32), (None, 3, 8)),
        ModelInput("n", np.dtype(np.int64), (1,)),
        ModelInput("h", np.dtype(np.float16), None),
    )


@pytest.mark.parametrize("end", [None, {}])
def test_items_come_in_order_with_the_models_names(end: object):
    reader = Yields(item(1), UserDict(reversed(item(4).items())), end, item(9))
    found = list(checked_items(reader, INPUTS))
    assert [len(batch["x"]) for batch in found] == [1, 4]
    assert [list(batch) for batch in found] == [["x", "ids"]] * 2


def test_items_are_read_one_at_a_time():
    """A lazy reader stays lazy; what is wrong is said when its turn comes."""
    items = checked_items(Yields(item(), item(x=3)), INPUTS)
    assert len(next(items)["x"]) == 1
    with pytest.raises(DataError, match="item 1 of the calibration data reader"):
        next(items)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([np.ones(3)], "is a list: yield a dict"),
        (np.ones((1, 3), np.float32), "is a ndarray: yield a dict"),
        ({"x": item()["x"]}, r"has the names \['x'\]: the model's inputs are \['ids', 'x'\]"),
        (item(z=np.ones(1)), r"has the names \['ids', 'x', 'z'\]"),
        (item(x=[[1.0, 2, 3]]), "input 'x' is a list: yield a NumPy array"),
        (item(x=np.ones((1, 3))), "input 'x' is float64: the model takes float32, convert it with astype"),
        (item(x=np.ones((1, 3), ">f4")), "input 'x' is >f4: the model takes float32"),
        (item(ids=np.zeros((1, 2, 5), np.int32)), "input 'ids' is int32: the model takes int64"),
        (item(x=np.ones((1, 4), np.float32)), r"input 'x' has the shape \(1, 4\): the model takes \(\?, 3\)"),
        (item(x=np.ones(3, np.float32)), r"has the shape \(3,\)"),
        (item(ids=np.zeros((1, 3, 5), np.int64)), r"the model takes \(\?, 2, \?\)"),
        (item(x=np.ones((0, 3), np.float32)), r"shape \(0, 3\) and is empty"),
        (item(x=np.float32([[1, np.nan, 2]])), "input 'x' contains NaN or Inf"),
        (item(x=np.float32([[1, 2, -np.inf]])), "input 'x' contains NaN or Inf"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(wrong: Any, message: str):
    reader = Yields(item(), wrong)
    with pytest.raises(DataError, match=message) as caught:
        list(checked_items(reader, INPUTS))
    assert str(caught.value).startswith("item 1 of the calibration data reader")


def test_a_reader_that_yields_nothing():
    with pytest.raises(DataError, match=r"yields nothing.*it is at its end: give a new one"):
        list(checked_items(Yields(), INPUTS))


def test_a_class_in_place_of_a_reader():
    with pytest.raises(DataError, match=r"Yields is a class: give an instance, Yields\(\)"):
        checked_reader(Yields)


def test_stop_iteration_is_the_end():
    class Bare:
        get_next = staticmethod(iter([item(), item()]).__next__)

    assert len(list(checked_items(Bare(), INPUTS))) == 2


@pytest.mark.parametrize(("limit", "read"), [(1, 1), (4, 2), (5, 3), (None, 4)])
def test_no_item_is_read_behind_the_first_samples(limit: int | None, read: int):
    reader = Yields(item(2), item(2), item(2), item(2))
    assert len(list(first_samples(checked_items(reader, INPUTS), limit))) == read
    assert len(list(reader._items)) == 4 - read


def test_a_reader_that_does_not_end_is_warned_of(caplog: pytest.LogCaptureFixture):
    one = item()
    reader = Yields(*[one] * 10_001)
    assert len(list(checked_items(reader, INPUTS))) == 10_001
    assert [record.message[:11] for record in caplog.records] == ["10000 items"]


class Tensor:
    """What PyTorch's looks like from outside."""

    def detach(self) -> Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return np.ones((1, 3), np.float32)


IMAGE = (ModelInput("x", np.dtype(np.float32), (None, 3, 8, 9)),)


@pytest.mark.parametrize(
    ("inputs", "array", "message"),
    [
        (INPUTS[:1], Tensor(), r"is a Tensor: yield a NumPy array, x\.detach\(\)\.cpu\(\)\.numpy\(\)$"),
        (INPUTS[:1], [[1.0, 2, 3]], r"is a list: yield a NumPy array, np\.asarray\(x\)$"),
        (INPUTS[:1], np.ma.masked_invalid(np.float32([[1, np.nan, 3]])), "is a masked array.* by .filled"),
        (IMAGE, np.ones((1, 8, 9, 3), np.float32), r"x\.transpose\(0, 3, 1, 2\)$"),
        (IMAGE, np.ones((3, 8, 9), np.float32), r"If the axis of the batch is missing: x\[None\]$"),
        (IMAGE, np.ones((1, 1, 3, 8, 9), np.float32), r"If there is an axis too many: x\[0\]$"),
        (IMAGE, np.ones((1, 3, 9, 8), np.float32), r"the model takes \(\?, 3, 8, 9\)$"),
        (IMAGE, np.ones((1, 3, 8, 9), np.uint8), r"is uint8: .* images of 0 to 255 are most often divided by 255"),
    ],
)
def test_the_message_says_what_to_do(inputs: tuple[ModelInput, ...], array: Any, message: str):
    with pytest.raises(DataError, match=message):
        list(checked_items(Yields({"x": array}), inputs))


def test_channels_that_the_model_wants_last():
    inputs = (ModelInput("x", np.dtype(np.float32), (None, 8, 9, 3)),)
    with pytest.raises(DataError, match=r"x\.transpose\(0, 2, 3, 1\)$"):
        list(checked_items(Yields({"x": np.ones((1, 3, 8, 9), np.float32)}), inputs))


def test_an_unknown_rank_takes_any_shape():
    inputs = (ModelInput("x", np.dtype(np.float32), None),)
    shapes = [(), (2,), (2, 3)]
    found = checked_items(Yields(*({"x": np.ones(s, np.float32)} for s in shapes)), inputs)
    assert [batch["x"].shape for batch in found] == shapes


@pytest.mark.parametrize(
    ("arrays", "count"),
    [({"x": (4, 3)}, 4), ({"x": (4, 3), "y": (4,)}, 4), ({"x": (), "y": (4,)}, 4), ({"x": ()}, 1)],
)
def test_samples_are_counted_along_the_first_axis(arrays: dict[str, tuple[int, ...]], count: int):
    assert sample_count({name: np.ones(shape) for name, shape in arrays.items()}) == count


def test_finite_values_whose_sum_is_not():
    largest = np.full((1, 3), np.finfo(np.float32).max)
    (found,) = checked_items(Yields(item(x=largest)), INPUTS)
    assert found["x"] is largest
