"""Where the walk keeps tensors: memory and files do the same, and files leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quark.onnx.stores import batch_store
from quark.onnx.stores.batch_store import BatchStore, FileStore, MemoryStore
from quark.onnx.stores.mapped_file import MappedFile

KEYS = [("float", "a", 0), ("float", "a", 1), ("quantized", "a", 0), ("quantized", "b/c:0", 0)]
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.uint8).reshape(3, 2).T,
    np.array([[True, False]]),
    np.array(3, np.int64),
    np.zeros((0, 4), np.float16),
    np.float32([np.nan, np.inf, -0.0]),
    np.array([["a", ""], ["\N{GREEK SMALL LETTER OMEGA}\0\ud800", "b" * 300]], object),
    np.array("alone", object),
    np.zeros((2, 0), object),
]

STORES: dict[str, Callable[[], BatchStore]] = {"memory": MemoryStore, "files": lambda: FileStore(None)}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from([*range(len(ARRAYS)), None])), max_size=20))
def test_both_hold_what_was_put_last(actions: list[tuple[tuple[str, str, int], int | None]]):
    """Each action puts an array, or drops what its key holds."""
    expected: dict[tuple[str, str, int], np.ndarray] = {}
    with MemoryStore() as memory, FileStore(None) as files:
        for key, array in actions:
            for store in (memory, files):
                if array is not None:
                    store.put(key, ARRAYS[array])
                elif key in expected:
                    store.drop(key)
            if array is not None:
                expected[key] = ARRAYS[array]
            else:
                expected.pop(key, None)
        for store in (memory, files):
            for key in KEYS:
                if key in expected:
                    assert store.get(key).dtype == expected[key].dtype
                    np.testing.assert_array_equal(store.get(key), expected[key])
                else:
                    with pytest.raises(KeyError):
                        store.get(key)


@pytest.mark.parametrize("name", STORES)
def test_what_is_read_does_not_change_with_the_store(name: str):
    with STORES[name]() as store:
        store.put(KEYS[0], ARRAYS[0])
        held = store.get(KEYS[0])
        store.put(KEYS[0], ARRAYS[0] + 1)
        store.drop(KEYS[0])
        np.testing.assert_array_equal(held, ARRAYS[0])


def test_files_have_no_names(tmp_path: Path):
    cache = tmp_path / "not" / "there" / "yet"
    with FileStore(str(cache)) as store:
        for key in KEYS:
            store.put(key, ARRAYS[0])
        store.put(KEYS[0], ARRAYS[1])
        store.mapped(ARRAYS[0])
        assert cache.is_dir()
        assert not list(cache.iterdir()), "what has no name need not be removed"


def test_two_stores_share_a_folder(tmp_path: Path):
    with FileStore(str(tmp_path)) as first, FileStore(str(tmp_path)) as second:
        first.put(KEYS[0], ARRAYS[0])
        second.put(KEYS[0], ARRAYS[1])
        np.testing.assert_array_equal(first.get(KEYS[0]), ARRAYS[0])
        second.close()
        np.testing.assert_array_equal(first.get(KEYS[0]), ARRAYS[0])
    assert not list(tmp_path.iterdir())


def test_an_error_removes_the_files_too(tmp_path: Path):
    def interrupted() -> None:
        with FileStore(str(tmp_path)) as store:
            store.put(KEYS[0], ARRAYS[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        FileStore(str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize("name", STORES)
def test_mapped_arrays_are_the_same_and_outlive_their_store(name: str):
    arrays = [array for array in ARRAYS if array.dtype.kind != "O"]  # no solver takes strings
    with STORES[name]() as store:
        mapped = [store.mapped(array) for array in arrays]
        again = store.mapped(mapped[0])
    for array, found in zip([*arrays, arrays[0]], [*mapped, again], strict=True):
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_mapped_arrays_have_no_files_of_their_own(tmp_path: Path):
    """A process may have some thousand files open, a model many more arrays."""
    open_files = Path("/proc/self/fd")
    if not open_files.exists():
        pytest.skip("this system does not list open files")
    before = len(list(open_files.iterdir()))
    with FileStore(str(tmp_path)) as store:
        mapped = [store.mapped(np.full((3, 5), i, np.int32)) for i in range(500)]
        assert len(list(open_files.iterdir())) < before + 10
        assert not [path for path in tmp_path.rglob("*") if path.is_file()], "what has no name need not be removed"
        assert all((array == i).all() for i, array in enumerate(mapped))
    del mapped, store
    assert len(list(open_files.iterdir())) == before


def test_an_array_that_does_not_fit_into_a_file_gets_the_next(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batch_store, "_FILE_BYTES", 1000)
    with FileStore(None) as store:
        arrays = [np.arange(n, dtype=np.uint8) for n in (400, 600, 1, 1000, 5000, 64, 999)]
        for found, array in zip([store.mapped(array) for array in arrays], arrays, strict=True):
            np.testing.assert_array_equal(found, array)


def test_threads_may_map_at_the_same_time():
    with FileStore(None) as store, ThreadPoolExecutor(8) as executor:
        arrays = [np.full(1000, i, np.uint16) for i in range(200)]
        for found, array in zip(executor.map(store.mapped, arrays), arrays, strict=True):
            np.testing.assert_array_equal(found, array)


def test_a_full_disk_is_explained(monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with FileStore(None) as store:
        monkeypatch.setattr(MappedFile, "add", full)
        with pytest.raises(OSError, match=r"cannot be kept in .*No space left.*another cache_dir, or memory level 1"):
            store.mapped(ARRAYS[0])
