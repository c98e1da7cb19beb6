"""Too little memory: what takes less is done, or a layer stays with its reason; no run is lost for one layer."""

from __future__ import annotations

import gc
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import Reader, residual_cnn, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    Int8Spec,
    ModelQuantizer,
    OutOfMemoryError,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)
from quark.onnx.fast_finetune import walk
from quark.onnx.solvers.least_squares import LeastSquaresLayer
from quark.onnx.stores.spilling_store import SpillingStore
from quark.onnx.system.memory_limit import MemoryLimit

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())


def quantized(model: onnx.ModelProto, *algorithms: object, **options: object) -> tuple[bytes, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=list(algorithms), extra_options=options))
    result = quantizer.quantize_model(model, None, Reader(samples(model, 40)))
    assert result is not None
    assert quantizer.report is not None
    return result.graph.SerializeToString(deterministic=True), quantizer.report


def only(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """So many bytes are free, whenever it is asked."""
    monkeypatch.setattr(MemoryLimit, "free", lambda _: free)


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("solver", ["least_squares", "gradient"])
def test_tensors_that_do_not_fit_go_to_files_with_the_same_result(
    level: int, solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = residual_cnn()
    algorithm = AdaRoundConfig(mem_opt_level=level, solver=solver, num_iterations=20, cache_dir=str(tmp_path))
    usual, report = quantized(model, algorithm)
    assert not any("memory was short" in note for note in report.notes)
    kept = SpillingStore.__init__
    monkeypatch.setattr(SpillingStore, "__init__", lambda self, _, folder: kept(self, 20_000, folder))
    spilled, report = quantized(model, algorithm)
    assert spilled == usual
    assert any("tensors went to files" in note for note in report.notes)
    gc.collect()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("algorithm", [AdaRoundConfig, AdaQuantConfig])
def test_layers_too_large_for_least_squares_stay_and_say_so(
    algorithm: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, 0)
    model = separable_cnn()
    result, report = quantized(model, algorithm(solver="least_squares"))
    assert report.layers
    assert not any(layer.accepted for layer in report.layers)
    assert all("MiB of memory, and 0 MiB are free" in layer.reason for layer in report.layers)
    plain, _ = quantized(model)
    assert result == plain


def test_layers_too_large_for_least_squares_are_trained_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.solvers.choose_solver.least_squares_bytes", lambda *_: 1 << 60)
    monkeypatch.setattr("quark.onnx.solvers.choose_solver.rows_that_fit", lambda *_: 0)
    _, report = quantized(separable_cnn(), AdaRoundConfig(num_iterations=50))
    accepted = [layer for layer in report.layers if layer.accepted]
    assert accepted
    assert all(layer.candidate.startswith("adaround, ") for layer in accepted)


def test_layers_whose_moments_are_too_large_are_solved_on_rows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("quark.onnx.solvers.choose_solver.least_squares_bytes", lambda *_: 1 << 60)
    with caplog.at_level(logging.INFO):
        _, report = quantized(separable_cnn(), AdaRoundConfig(solver="least_squares"))
    accepted = [layer for layer in report.layers if layer.accepted]
    assert accepted
    assert all(layer.rows[0] <= layer.inputs for layer in accepted)
    assert all(layer.after[1] < layer.before[1] for layer in accepted)
    assert "solved on" in caplog.text


def test_the_limit_is_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    free = MemoryLimit.free
    monkeypatch.setattr(MemoryLimit, "free", lambda self: asked.append(self.most) or free(self))
    quantized(separable_cnn(), AdaRoundConfig(), MaxMemory=3000)
    assert asked
    assert set(asked) == {3000 << 20}


def test_one_mib_is_enough_for_a_plain_result_of_which_nothing_is_hidden() -> None:
    model = separable_cnn()
    _, report = quantized(model, AdaRoundConfig(solver="least_squares"), MaxMemory=1)
    assert report.layers
    assert all("are free" in layer.reason for layer in report.layers)


@pytest.mark.parametrize("method", ["__init__", "feed", "solve"])
@pytest.mark.parametrize("algorithm", [AdaRoundConfig(solver="least_squares"), BiasCorrectionConfig()])
def test_a_layer_that_runs_out_of_memory_is_the_only_one_that_stays(
    method: str, algorithm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, kept = [], getattr(LeastSquaresLayer, method)

    def refused(self: LeastSquaresLayer, *given: object, **named: object) -> object:
        calls.append(self)
        if self is calls[0]:
            raise MemoryError
        return kept(self, *given, **named)

    monkeypatch.setattr(LeastSquaresLayer, method, refused)
    _, report = quantized(residual_cnn(), algorithm)
    first, *others = report.layers or report.corrections
    assert first.reason.startswith("out of memory")
    assert any(layer.accepted for layer in others)


def test_where_the_walk_runs_out_of_memory_what_was_finetuned_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opened = residual_cnn(), walk.session
    sessions = []

    def scarce(*given: object, **named: object) -> ort.InferenceSession:
        sessions.append(1)
        if len(sessions) > 4:
            raise OutOfMemoryError("out of memory: std::bad_alloc")
        return opened(*given, **named)

    monkeypatch.setattr(walk, "session", scarce)
    result, report = quantized(model, AdaRoundConfig(solver="least_squares"))
    tuned = [layer.accepted for layer in report.layers]
    assert any(tuned)
    assert report.layers[-1].reason.startswith("out of memory")
    assert result != quantized(model)[0]


def test_a_parallel_run_counts_what_all_layers_take_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.solvers.choose_solver.least_squares_bytes", lambda *_: 1000)
    only(monkeypatch, 2500)
    _, report = quantized(residual_cnn(), AdaRoundConfig(solver="least_squares", parallel=True))
    fits = ["are free" not in layer.reason for layer in report.layers]
    assert fits == [True, True] + [False] * (len(fits) - 2)


def test_no_place_for_files_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    kept = SpillingStore.__init__
    monkeypatch.setattr(SpillingStore, "__init__", lambda self, _, folder: kept(self, 0, folder))
    with pytest.raises(OSError, match="temporary folder"):
        quantized(separable_cnn(), AdaRoundConfig())
    monkeypatch.undo()
    assert quantized(separable_cnn(), AdaRoundConfig())[1].layers


def test_mapped_arrays_are_counted_as_long_as_they_live(tmp_path: Path) -> None:
    with SpillingStore(100, tmp_path) as store:
        first = store.mapped(np.zeros(20, np.float32))
        assert store.spilled == 0
        second = store.mapped(np.ones(20, np.float32))
        assert store.spilled == 80
        np.testing.assert_array_equal(second, np.ones(20))
        del first
        gc.collect()
        store.put(("graph", "x", 0), np.zeros(25, np.float32))
        assert store.spilled == 80


def test_a_store_replaces_drops_and_finds_arrays_wherever_they_are(tmp_path: Path) -> None:
    small, large = np.arange(4, dtype=np.float32), np.arange(40, dtype=np.float32)
    with SpillingStore(100, tmp_path) as store:
        for given in (small, large, small):
            store.put(("graph", "x", 0), given)
            np.testing.assert_array_equal(store.get(("graph", "x", 0)), given)
        store.put(("graph", "y", 0), large)
        for name in "xy":
            store.drop(("graph", name, 0))
        store.put(("graph", "z", 0), np.zeros(25, np.float32))
        assert store.spilled == 2 * large.nbytes
