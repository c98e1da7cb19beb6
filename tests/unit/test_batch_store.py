"""Where the walk keeps tensors: memory and files do the same, and files leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quark.onnx.fast_finetune.batch_store import BatchStore, FileStore, MemoryStore

KEYS = [("float", "a", 0), ("float", "a", 1), ("quantized", "a", 0), ("quantized", "b/c:0", 0)]
ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.arange(6, dtype=np.uint8).reshape(3, 2).T,
    np.array([[True, False]]),
    np.array(3, np.int64),
    np.zeros((0, 4), np.float16),
    np.float32([np.nan, np.inf, -0.0]),
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


def test_files_come_and_go_with_what_they_hold(tmp_path: Path):
    cache = tmp_path / "not" / "there" / "yet"
    with FileStore(str(cache)) as store:
        (folder,) = cache.iterdir()
        for key in KEYS:
            store.put(key, ARRAYS[0])
        store.put(KEYS[0], ARRAYS[1])
        assert len(list(folder.iterdir())) == len(KEYS)
        store.drop(KEYS[0])
        assert len(list(folder.iterdir())) == len(KEYS) - 1
    assert not list(cache.iterdir())


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
