"""Joining items into batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quark.onnx.calibration_data.joining import BatchJoiner

MOST = 1 << 20


def join(items: Any, allowed: bool = True, most_bytes: float = MOST) -> list[dict[str, np.ndarray]]:
    return list(BatchJoiner(lambda *_: allowed, most_bytes).join(items))


def items_of(sizes: list[tuple[int, int]]) -> list[dict[str, np.ndarray]]:
    """Items of so many samples and columns."""
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((n, k), np.float32), "n": np.arange(n)} for n, k in sizes]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 2)), max_size=12), st.booleans())
def test_every_sample_stays_in_order(sizes: list[tuple[int, int]], allowed: bool):
    items = items_of(sizes)
    batches = join(items, allowed)
    if not allowed:
        assert len(batches) == len(items)
    for name in ("x", "n"):
        rows = [row.tolist() for batch in batches for row in batch[name]]
        assert rows == [row.tolist() for one in items for row in one[name]]
    for batch in batches:
        assert len(batch["x"]) == len(batch["n"])
        assert len(batch["x"]) <= max(16, *(n for n, _ in sizes))
        assert batch["x"].flags.c_contiguous
    if allowed:  # no two neighbours that would still fit together
        for a, b in pairwise(batches):
            first_of_b = next(one for one in items if np.array_equal(one["x"], b["x"][: len(one["x"])]))
            assert a["x"].shape[1] != b["x"].shape[1] or len(a["x"]) + len(first_of_b["x"]) > 16


def test_a_batch_has_no_more_bytes_than_allowed():
    items = [{"x": np.ones((1, 256), np.float32)} for _ in range(7)]  # 1 KiB each
    assert [len(b["x"]) for b in join(items, most_bytes=3 << 10)] == [3, 3, 1]


def test_large_items_stay_apart():
    large = [{"x": np.ones((1, 3 << 18), np.float32)} for _ in range(3)]  # 3 MiB each
    assert [len(b["x"]) for b in join(large)] == [1, 1, 1]


def test_items_without_a_first_axis_stay_apart():
    scalars = [{"x": np.array(float(i))} for i in range(3)]
    assert [float(b["x"]) for b in join(scalars)] == [0, 1, 2]


@pytest.mark.parametrize("allowed", [False, True])
def test_a_reader_may_use_its_memory_again(allowed: bool):
    buffer = np.zeros((1, 2), np.float32)

    def items() -> Iterator[dict[str, np.ndarray]]:
        for i in range(4):
            buffer[:] = i
            yield {"x": buffer}

    assert np.concatenate([batch["x"] for batch in join(items(), allowed)])[:, 0].tolist() == [0, 1, 2, 3]


def test_transposed_items_become_contiguous():
    (batch,) = join([{"x": np.arange(6).reshape(3, 2).T}])
    assert batch["x"].flags.c_contiguous
    assert batch["x"].tolist() == [[0, 2, 4], [1, 3, 5]]


def test_adding_gives_back_what_is_complete():
    joiner = BatchJoiner(lambda *_: True, 8)  # two float32
    given_back = [joiner.add({"x": np.float32([i])}) for i in range(5)]
    assert [None if b is None else b["x"].tolist() for b in given_back] == [None, None, [0, 1], None, [2, 3]]
    rest = joiner.rest()
    assert rest is not None
    assert rest["x"].tolist() == [4]
    assert joiner.rest() is None
