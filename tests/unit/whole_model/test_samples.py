"""Samples kept for the walk, and those set apart to compare whole models on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from quark.onnx.calibration_data.joining import BatchJoiner
from quark.onnx.fast_finetune.kept_samples import KeptSamples
from quark.onnx.stores.batch_store import BatchStore, FileStore, MemoryStore
from quark.onnx.whole_model.set_apart import SetApart

pytestmark = pytest.mark.sets_apart

Items = list[dict[str, np.ndarray]]


class CountingStore(MemoryStore):
    """Knows how many arrays it holds."""

    @property
    def held(self) -> int:
        return len(self._arrays)


def numbered(count: int, *, together: int = 1, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Samples 0, 1, 2, ... in the same memory, as readers with a buffer give them."""
    buffer = np.empty((together, 1), np.float32)
    for first in range(start, start + count, together):
        numbers = np.arange(first, min(first + together, start + count), dtype=np.float32)
        buffer[: len(numbers), 0] = numbers
        yield {"x": buffer[: len(numbers)]}


def numbers(items: Items | SetApart | Iterator[dict[str, np.ndarray]]) -> list[int]:
    return [int(x) for item in items for x in item["x"].reshape(-1)]


def split(count: int, store: BatchStore, *, together: int = 1, divisible: bool = True) -> tuple[SetApart, list[int]]:
    """What was set apart, and the numbers that go on."""
    apart = SetApart(store)
    passed = [
        x for item in apart.split(numbered(count, together=together), divisible=divisible) for x in numbers([item])
    ]
    return apart, passed


@pytest.mark.parametrize("level_2", [False, True])
@pytest.mark.parametrize("together", [1, 3, 7, 40, 45, 100])
def test_every_eighth_sample_is_set_apart_however_the_reader_cuts(together: int, level_2: bool) -> None:
    with FileStore(None) if level_2 else MemoryStore() as store:
        apart, passed = split(100, store, together=together)
        assert (apart.seen, apart.held_out) == (100, True)
        assert numbers(apart.compared) == list(range(7, 100, 8))
        assert passed == [i for i in range(100) if i % 8 != 7]
        assert apart.compared.samples == 12


def test_no_more_than_64_are_set_apart() -> None:
    with CountingStore() as store:
        apart, passed = split(1000, store, together=9)
        assert numbers(apart.compared) == list(range(7, 512, 8))
        assert len(passed) == 1000 - 64
        assert store.held == len(apart.compared), "what waited is gone"


@pytest.mark.parametrize(("count", "compared"), [(39, range(4, 39, 5)), (10, (4, 9)), (9, range(9)), (1, (0,))])
@pytest.mark.parametrize("together", [1, 4, 64])
def test_of_few_samples_all_go_on(count: int, compared: range, together: int) -> None:
    """Compared are those that solvers hold out; all where these hold out none."""
    with CountingStore() as store:
        apart, passed = split(count, store, together=together)
        assert passed == list(range(count))
        assert not apart.held_out
        assert numbers(apart.compared) == list(compared)
        assert store.held == len(apart.compared)


def test_items_that_cannot_be_divided_are_set_apart_whole() -> None:
    with MemoryStore() as store:
        apart, passed = split(100, store, together=5, divisible=False)
        assert numbers(apart.compared) == [*range(35, 40), *range(75, 80)]
        assert passed == [i for i in range(100) if i not in numbers(apart.compared)]
        few, passed = split(64, store, together=16, divisible=False)
        assert passed == list(range(64))
        assert not few.held_out


def test_items_with_a_scalar_are_set_apart_whole() -> None:
    with MemoryStore() as store:
        apart = SetApart(store)
        items = ({"x": np.full((2, 1), i), "threshold": np.float32(i)} for i in range(30))
        assert len(list(apart.split(items, divisible=True))) == 27
        assert [int(item["threshold"]) for item in apart.compared] == [7, 15, 23]


def test_large_samples_are_set_apart_up_to_a_number_of_bytes() -> None:
    with MemoryStore() as store:
        apart = SetApart(store, most_bytes=12)
        passed = list(apart.split(numbered(100), divisible=True))
        assert numbers(apart.compared) == [7, 15, 23]
        assert len(passed) == 97


def test_no_more_is_kept_than_needed() -> None:
    with CountingStore() as store:
        samples = KeptSamples(store, 20)
        joiner = BatchJoiner(lambda *_: True, 4)
        assert len(list(samples.keep(numbered(50), joiner, divisible=True))) == 50
        assert samples.samples == 20
        assert store.held == 20
        for batch in range(samples.batches):
            assert numbers([samples.load(batch)]) == [batch]
            samples.drop(batch)
        assert store.held == 0


@pytest.mark.sets_apart
@pytest.mark.parametrize(("items", "samples"), [(2, 40), (2, 32), (4, 32), (7, 8), (3, 64)])
def test_few_items_that_cannot_be_divided_are_compared_although_they_are_fitted_to(items: int, samples: int) -> None:
    apart = SetApart(MemoryStore())
    given = [{"x": np.full((samples, 2), index, np.float32)} for index in range(items)]
    fitted = list(apart.split(iter(given), divisible=False))
    assert [int(item["x"][0, 0]) for item in fitted] == list(range(items))
    assert apart.compared.samples == samples
    np.testing.assert_array_equal(apart.compared[0]["x"], given[0]["x"])
    assert not apart.held_out
