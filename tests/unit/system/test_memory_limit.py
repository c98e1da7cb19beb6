"""How much memory a run may still take, by each of the limits that there are."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from quark.onnx import OutOfMemoryError, _core
from quark.onnx.errors import ModelError
from quark.onnx.system.memory_limit import MemoryLimit, unless_out_of_memory

MIB = 1 << 20


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., MemoryLimit]:
    """Makes the limit on a system that tells of itself only what is given."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def made(files: Mapping[str, str], most: int | None = None) -> MemoryLimit:
        for path, text in files.items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return MemoryLimit(most, tmp_path)

    return made


def test_what_the_machine_has_left_counts_but_for_a_tenth(limit: Callable[..., MemoryLimit]) -> None:
    assert limit({"/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n"}).free() == 900 * 1024


def test_a_control_group_of_version_2_counts_and_what_it_can_drop_is_free(limit: Callable[..., MemoryLimit]) -> None:
    files = {
        "/proc/self/cgroup": "0::/a/b\n",
        "/sys/fs/cgroup/a/memory.max": f"{100 * MIB}",
        "/sys/fs/cgroup/a/memory.current": f"{70 * MIB}",
        "/sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {10 * MIB}\n",
        "/sys/fs/cgroup/a/b/memory.max": "max",
        "/sys/fs/cgroup/a/b/memory.current": f"{70 * MIB}",
    }
    assert limit(files).free() == 36 * MIB


def test_a_control_group_of_version_1_counts_and_its_largest_number_is_no_limit(
    limit: Callable[..., MemoryLimit],
) -> None:
    folder = "/sys/fs/cgroup/memory/job"
    files = {
        "/proc/self/cgroup": "4:cpu,memory:/job\n3:pids:/\n",
        f"{folder}/memory.limit_in_bytes": f"{50 * MIB}",
        f"{folder}/memory.usage_in_bytes": f"{20 * MIB}",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": f"{20 * MIB}",
        "/proc/meminfo": "MemAvailable: 900000000 kB\n",
    }
    assert limit(files).free() == 27 * MIB


def test_the_limit_of_the_options_counts_against_resident_memory(
    limit: Callable[..., MemoryLimit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "resident_memory", lambda: (300 * MIB, 400 * MIB))
    assert limit({}, 350 * MIB).free() == 50 * MIB
    assert limit({}, 200 * MIB).free() == 0


def test_the_address_space_counts(limit: Callable[..., MemoryLimit], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2000 * resource.getpagesize(), resource.RLIM_INFINITY))
    assert limit({"/proc/self/statm": "1000 10 10\n"}).free() == 1000 * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="not on Linux")
def test_this_machine_has_memory_left() -> None:
    assert 0 < MemoryLimit().free() < 1 << 50


def test_what_onnxruntime_says_of_memory_is_told_from_other_errors() -> None:
    otherwise = ModelError("onnxruntime cannot load the model: x")
    assert unless_out_of_memory(RuntimeError("bad weather"), otherwise) is otherwise
    for error in (RuntimeError("std::bad_alloc"), MemoryError()):
        found = unless_out_of_memory(error, otherwise)
        assert isinstance(found, OutOfMemoryError)
        assert "onnxruntime cannot load the model" in str(found)
