"""Samples kept for the walk, and those set aside to compare whole models on."""

from __future__ import annotations

import numpy as np
import pytest

from quark.onnx.calibration.joining import BatchJoiner
from quark.onnx.fast_finetune.batch_store import BatchStore, FileStore, MemoryStore
from quark.onnx.fast_finetune.samples import KeptSamples


class CountingStore(MemoryStore):
    """Knows how many arrays it holds."""

    @property
    def held(self) -> int:
        return len(self._arrays)


def kept(store: BatchStore, count: int, *, together: int = 1, limit: int = 1000) -> KeptSamples:
    """Of samples 0, 1, 2, ... with every fifth held out."""
    samples = KeptSamples(store, limit, 5)
    items = iter([{"x": np.array([[i]], np.float32)} for i in range(count)])
    joiner = BatchJoiner(lambda *_: True, 4 * together)
    assert len(list(samples.keep(items, joiner, divisible=True))) == count
    return samples


def compared(samples: KeptSamples) -> list[int]:
    return [int(x) for batch in samples.compared for x in batch["x"].reshape(-1)]


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("level_2", [False, True])
def test_held_out_samples_are_compared(level_2: bool, together: int):
    with FileStore(None) if level_2 else MemoryStore() as store:
        samples = kept(store, 23, together=together)
        assert (samples.samples, samples.held_out) == (23, True)
        for batch in range(samples.batches):
            samples.drop(batch)
        assert compared(samples) == [4, 9, 14, 19]
        assert samples.compared.samples == 4


def test_few_samples_are_compared_as_they_are():
    with MemoryStore() as store:
        samples = kept(store, 9)
        assert not samples.held_out
        assert compared(samples) == list(range(9))


def test_no_more_is_kept_than_needed():
    with CountingStore() as store:
        samples = kept(store, 50, limit=20)
        assert samples.samples == 20
        assert store.held == 20 + 4  # the first ones are not compared, so they are not kept twice
        for batch in range(samples.batches):
            samples.drop(batch)
        assert store.held == 4
        assert compared(samples) == [4, 9, 14, 19]
