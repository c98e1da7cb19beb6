"""A process with little of something: it works, or there is an error of this package or of the system's kind; nothing
half-written is left, and the process is usable afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

TESTS = Path(__file__).parents[2]

# Quantizes under a limit, then again without it. Prints what became of both.
CHILD = """
import json, os, resource, sys
sys.path.insert(0, sys.argv[1])
from small_models import Reader, samples, separable_cnn
from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, QuarkError, UInt8Spec

job = json.loads(sys.argv[2])
model = separable_cnn()
data = samples(model, 40)

def quantize():
    algorithm = AdaRoundConfig(**job["options"])
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[algorithm])
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(model, job["output"], Reader(data))
    return "done"

def tried():
    try:
        return quantize()
    except (QuarkError, OSError) as error:
        return f"{type(error).__name__}: {error}"

kind = getattr(resource, job["limit"])
usual = resource.getrlimit(kind)
allowed = job["allowed"]
if job["limit"] == "RLIMIT_AS":
    with open("/proc/self/statm") as memory:
        allowed += int(memory.read().split()[0]) * resource.getpagesize()
resource.setrlimit(kind, (allowed, usual[1]))
first = tried()
resource.setrlimit(kind, usual)
left = sorted(os.listdir(job["folder"]))
print(json.dumps([first, left, quantize()]))
"""


def outcome(tmp_path: Path, limit: str, allowed: int, **options: Any) -> tuple[str, list[str]]:
    """What became of the run under the limit, and what it left beside the output and as temporary files."""
    folder = tmp_path / "all"
    folder.mkdir()
    options.setdefault("cache_dir", str(folder)) if options.get("mem_opt_level") == 2 else None
    job = {
        "limit": limit,
        "allowed": allowed,
        "options": options,
        "output": str(folder / "q.onnx"),
        "folder": str(folder),
    }
    environment = {**os.environ, "TMPDIR": str(folder), "ORT_DISABLE_TELEMETRY": "1"}
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(TESTS), json.dumps(job)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    if run.returncode == 127 and "thread-local data" in run.stderr:
        pytest.skip("the C library ended the process itself, which no caller can prevent")
    if run.returncode in (-signal.SIGABRT, -signal.SIGSEGV) and "bad_alloc" in run.stderr:
        assert not (folder / "q.onnx").exists()
        pytest.skip("onnxruntime's C++ ended the process itself where memory was refused")
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    first, left, again = json.loads(run.stdout.splitlines()[-1])
    assert again == "done"
    return first, left


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("allowed", [0, 1000, 100_000])
def test_files_that_may_not_grow(level: int, allowed: int, tmp_path: Path) -> None:
    first, left = outcome(tmp_path, "RLIMIT_FSIZE", allowed, mem_opt_level=level)
    assert first == "done" or first.startswith("OSError: ")
    assert left == (["q.onnx"] if first == "done" else [])


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("allowed", [3, 5, 8, 16])
def test_few_open_files(level: int, allowed: int, tmp_path: Path) -> None:
    first, left = outcome(tmp_path, "RLIMIT_NOFILE", allowed, mem_opt_level=level)
    assert first == "done" or "rror: " in first
    assert left in ([], ["q.onnx"]), first
    if left:  # the model may be in place when there is no descriptor left to tell the disk
        onnx.checker.check_model(onnx.load(tmp_path / "all" / "q.onnx"), full_check=True)
    else:
        assert first != "done"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
@pytest.mark.parametrize("mebibytes", [0, 4, 16, 32, 64, 100, 150, 250])
def test_little_address_space(mebibytes: int, tmp_path: Path) -> None:
    first, left = outcome(tmp_path, "RLIMIT_AS", mebibytes << 20)
    assert first == "done" or first.startswith(("OutOfMemoryError: ", "OSError: "))
    assert left == (["q.onnx"] if first == "done" else [])


def test_an_environment_without_anything(tmp_path: Path) -> None:
    """No HOME, no PATH, no language; a temporary folder that does not exist."""
    job = {"limit": "RLIMIT_CORE", "allowed": 0, "options": {}, "output": str(tmp_path / "q.onnx"), "folder": "/"}
    environment = {"TMPDIR": str(tmp_path / "missing")}
    for name in ("LD_LIBRARY_PATH", "PYTHONPATH"):  # how this interpreter is found is not what is tested
        if name in os.environ:
            environment[name] = os.environ[name]
    command = [sys.executable, "-c", CHILD, str(TESTS), json.dumps(job)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    assert json.loads(run.stdout.splitlines()[-1])[0] == "done"
