"""What a data reader may yield, what is said of the rest, and how items become batches."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from small_models import build

from quark.onnx.calibration.reader import (
    ModelInput,
    checked_items,
    merged_batches,
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
    with pytest.raises(DataError, match="yields nothing"):
        list(checked_items(Yields(), INPUTS))


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


# ---- merging --------------------------------------------------------------------------------------

Sizes = list[tuple[int, int]]  # samples and columns of each item


def items_of(sizes: Sizes) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, k), np.float32), "n": np.arange(n)} for n, k in sizes]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 2)), max_size=12), st.booleans())
def test_merging_keeps_every_sample_in_order(sizes: Sizes, allowed: bool):
    items = items_of(sizes)
    asked = []

    def can_merge(a: Any, b: Any) -> bool:
        asked.append((a, b))
        return allowed

    merged = list(merged_batches(iter(items), can_merge=can_merge))
    assert len(asked) <= 1
    if not allowed:
        assert len(merged) == len(items)
    rows = [row.tolist() for batch in merged for row in batch["x"]]
    assert rows == [row.tolist() for one in items for row in one["x"]]
    numbers = [n for batch in merged for n in batch["n"]]
    assert numbers == [n for one in items for n in one["n"]]
    for batch in merged:
        assert len(batch["x"]) == len(batch["n"])
        assert len(batch["x"]) <= 64
        assert batch["x"].flags.c_contiguous
    if allowed:  # no two neighbours that would still fit together
        for a, b in pairwise(merged):
            first_of_b = next(one for one in items if np.array_equal(one["x"], b["x"][: len(one["x"])]))
            assert a["x"].shape[1] != b["x"].shape[1] or len(a["x"]) + len(first_of_b["x"]) > 64


def test_large_items_stay_apart():
    large = [{"x": np.ones((1, 3 << 18), np.float32)} for _ in range(3)]  # 3 MiB each
    assert [len(b["x"]) for b in merged_batches(iter(large), can_merge=lambda *_: True)] == [1, 1, 1]


def test_items_without_a_first_axis_stay_apart():
    scalars = [{"x": np.array(float(i))} for i in range(3)]
    assert [float(b["x"]) for b in merged_batches(iter(scalars), can_merge=lambda *_: True)] == [0, 1, 2]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_reader_may_use_its_memory_again(allowed: bool):
    buffer = np.zeros((1, 2), np.float32)

    def items() -> Iterator[dict[str, np.ndarray]]:
        for i in range(4):
            buffer[:] = i
            yield {"x": buffer}

    merged = list(merged_batches(items(), can_merge=lambda *_: allowed))
    assert np.concatenate([batch["x"] for batch in merged])[:, 0].tolist() == [0, 1, 2, 3]


def test_transposed_items_become_contiguous():
    merged = list(merged_batches(iter([{"x": np.arange(6).reshape(3, 2).T}]), can_merge=lambda *_: True))
    assert merged[0]["x"].flags.c_contiguous
    assert merged[0]["x"].tolist() == [[0, 2, 4], [1, 3, 5]]
