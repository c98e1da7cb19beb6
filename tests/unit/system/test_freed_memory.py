"""Memory that the C library keeps is counted, and given back when it is much."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from quark.onnx import _core
from quark.onnx.system import freed_memory
from quark.onnx.system.freed_memory import FreedMemory, return_much

MIB = 1 << 20
tells = pytest.mark.skipif(_core.unused_memory() == 0, reason="the system does not tell")


@pytest.fixture(autouse=True)
def nothing_kept_of_other_tests():
    _core.return_memory()


def small_arrays() -> list[np.ndarray]:
    """125 MiB, too small for mappings of their own; the last one keeps the heap's end: nothing goes back by itself."""
    return [np.ones(64 << 10, np.uint8) for _ in range(2001)]


def mapped(size: int) -> np.ndarray:
    """So many bytes outside the heap, in use until the array goes."""
    array = np.frombuffer(mmap.mmap(-1, size), np.uint8)
    array[:] = 1
    return array


@tells
def test_much_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(freed_memory, "_ROOM", 1 << 60)  # whatever the process has had before
    freed, before = FreedMemory(), _core.unused_memory()
    arrays = small_arrays()
    assert _core.unused_memory() - before < 20 * MIB
    del arrays[:-1]
    kept = _core.unused_memory()
    assert kept - before > 80 * MIB
    with monkeypatch.context() as patch:
        patch.setattr(freed_memory, "_MOST_BYTES", 1000 * MIB)
        freed.keep_little()
    assert _core.unused_memory() > kept - 20 * MIB
    freed.keep_little()
    assert _core.unused_memory() < before + 40 * MIB
    assert arrays[0].all()


@tells
def test_what_the_process_has_had_before_it_may_keep(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(freed_memory, "_SMALL", 0)
    freed = FreedMemory()
    arrays = small_arrays()
    now, peak = _core.resident_memory()
    more = mapped(peak - now + 64 * MIB)
    del arrays[:-1]
    kept = _core.unused_memory()
    freed.keep_little()
    assert _core.unused_memory() < kept - 80 * MIB
    arrays += small_arrays()
    del more, arrays[:-1]
    kept = _core.unused_memory()
    freed.keep_little()
    assert _core.unused_memory() > kept - 20 * MIB


@tells
def test_a_small_process_keeps_all(monkeypatch: pytest.MonkeyPatch):
    freed, arrays = FreedMemory(), small_arrays()
    now, peak = _core.resident_memory()
    more = mapped(peak - now + MIB)  # with it the process has more than ever
    del arrays[:-1]
    kept = _core.unused_memory()
    monkeypatch.setattr(freed_memory, "_SMALL", _core.resident_memory()[0] + 32 * MIB)
    freed.keep_little()
    assert _core.unused_memory() > kept - 20 * MIB
    monkeypatch.setattr(freed_memory, "_SMALL", _core.resident_memory()[0] + 8 * MIB)
    freed.keep_little()
    assert _core.unused_memory() < kept - 80 * MIB
    assert more.all()


@tells
def test_resident_memory_follows_what_is_used():
    before, _ = _core.resident_memory()
    array = mapped(64 * MIB)
    now, peak = _core.resident_memory()
    assert 60 * MIB < now - before < 80 * MIB
    del array
    after, peak_after = _core.resident_memory()
    assert after < now - 60 * MIB
    assert peak_after >= peak >= now - MIB


@tells
def test_very_much_goes_back_whatever_the_process_has_had(monkeypatch: pytest.MonkeyPatch):
    before, arrays = _core.unused_memory(), small_arrays()
    del arrays[:-1]
    kept = _core.unused_memory()
    assert kept - before > 80 * MIB
    monkeypatch.setattr(freed_memory, "_MUCH", kept + 60 * MIB)  # other tests may have left any amount
    return_much()
    assert _core.unused_memory() > kept - 20 * MIB
    monkeypatch.setattr(freed_memory, "_MUCH", kept - 60 * MIB)
    return_much()
    assert _core.unused_memory() < before + 40 * MIB
    assert arrays[0].all()
