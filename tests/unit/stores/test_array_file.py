"""Arrays in a file without a name: those of any type come back, and room is used again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quark.onnx.stores.array_file import ArrayFile

TYPES = [kind for kind in onnx.TensorProto.DataType.values() if kind != onnx.TensorProto.UNDEFINED]


def file_size(file: ArrayFile) -> int:
    return os.fstat(file._file.fileno()).st_size


@pytest.mark.parametrize("kind", TYPES, ids=onnx.TensorProto.DataType.Name)
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)], ids=str)
def test_every_type_of_tensor(kind: int, shape: tuple[int, ...], tmp_path: Path):
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    numbers = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    array = np.asarray((numbers % 2).astype(str) if dtype.kind == "O" else numbers % 2).astype(dtype)
    array = np.asarray(array, dtype)  # NumPy makes scalars of arrays without axes
    file = ArrayFile(tmp_path)
    found = file.read(file.add(array))
    file.close()
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert str(found.tolist()) == str(array.tolist()), "as text, where NaN is NaN"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 300)), max_size=60))
def test_what_is_kept_is_never_written_over(actions: list[tuple[int, int]]):
    """Each action puts bytes into a place that may hold some; at the end all of the file is free again."""
    file, kept, expected = ArrayFile(gettempdir()), {}, {}
    for number, (place, size) in enumerate(actions):
        if place in kept:
            file.remove(kept[place])
        expected[place] = np.full(size, number % 251, np.uint8)
        kept[place] = file.add(expected[place])
        for key, array in expected.items():
            np.testing.assert_array_equal(file.read(kept[key]), array)
    for one in kept.values():
        file.remove(one)
    assert file_size(file) == 0
    assert not file._gaps
    file.close()


def test_room_is_used_again(tmp_path: Path):
    file = ArrayFile(tmp_path)
    arrays = [file.add(np.zeros(1000, np.uint8)) for _ in range(10)]
    for _ in range(5):
        for i in range(9):
            file.remove(arrays[i])
        for i in range(9):
            arrays[i] = file.add(np.zeros(1000, np.uint8))
    assert file_size(file) <= 10 * 1024
    file.close()


def test_threads_may_use_it_at_the_same_time(tmp_path: Path):
    file = ArrayFile(tmp_path)

    def churn(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            array = random.integers(0, 256, random.integers(1, 5000), np.uint8)
            kept = file.add(array)
            np.testing.assert_array_equal(file.read(kept), array)
            file.remove(kept)

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(churn, range(8)))
    assert file_size(file) == 0
    file.close()


def test_a_failed_write_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = ArrayFile(tmp_path)
    with monkeypatch.context() as patch:

        def full(*_: object) -> int:
            raise OSError("No space left on device")

        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            file.add(np.zeros(1000))
    assert file.read(file.add(np.arange(3))).tolist() == [0, 1, 2]
    assert file_size(file) <= 64
    file.close()
