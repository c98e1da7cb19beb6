"""Memory that the C library keeps is counted, and given back when it is much."""

from __future__ import annotations

import numpy as np
import pytest

from quark.onnx import _core, freed_memory
from quark.onnx.freed_memory import FreedMemory

MIB = 1 << 20


@pytest.mark.skipif(_core.unused_memory() == 0, reason="the system does not tell")
def test_much_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch):
    freed, before = FreedMemory(), _core.unused_memory()
    arrays = [np.ones(64 << 10, np.uint8) for _ in range(2000)]  # 125 MiB, too small for mappings of their own
    last = np.ones(64 << 10, np.uint8)  # at the heap's end: nothing goes back by itself
    assert _core.unused_memory() - before < 20 * MIB
    arrays.clear()
    kept = _core.unused_memory()
    assert kept - before > 80 * MIB
    monkeypatch.setattr(freed_memory, "_MOST_BYTES", 1000 * MIB)
    freed.keep_little()
    assert _core.unused_memory() > kept - 20 * MIB
    monkeypatch.undo()
    freed.keep_little()
    assert _core.unused_memory() < before + 40 * MIB
    assert last.all()
