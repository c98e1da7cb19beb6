"""Ctrl-C, or an error, at any moment: nothing half-written is left behind, and the next run works."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Arrays, Reader, Weights, build, samples, separable_cnn

import quark.onnx
import quark.onnx.fast_finetune.finetune_layers as run
from quark.onnx import (
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.system.progress import PhaseProgress

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
OLD = b"what was there before"


class Place:
    """An output folder with an older result, a cache folder, and the process's temporary folder."""

    def __init__(self, root: Path) -> None:
        self.output, self.cache, self.temporary = (root / name for name in ("output", "cache", "temporary"))
        for folder in (self.output, self.cache, self.temporary):
            folder.mkdir()
        self.path = self.output / "q.onnx"
        self.path.write_bytes(OLD)

    def config(self, *, level: int = 1) -> AdaRoundConfig:
        return AdaRoundConfig(mem_opt_level=level, cache_dir=str(self.cache))

    def assert_untouched(self) -> None:
        assert os.listdir(self.output) == ["q.onnx"]
        assert self.path.read_bytes() == OLD
        assert os.listdir(self.cache) == []
        assert os.listdir(self.temporary) == []


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    place = Place(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(place.temporary))
    yield place
    place.assert_untouched()


def quantize(place: Place, *, level: int, reader: object | None = None) -> ModelQuantizer:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[place.config(level=level)]))
    quantizer.quantize_model(model, place.path, reader or Reader(samples(model, 24)))
    return quantizer


def finetune(place: Place, *, level: int) -> None:
    model = separable_cnn()
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, Reader(samples(model, 24)))
    quark.onnx.finetune(model, plain, place.path, Reader(samples(model, 24)), place.config(level=level))


def stop_after(steps: int, title: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the progress display raise at one step of one phase, as Ctrl-C would; the notes that it showed."""
    advance, shown = PhaseProgress.advance, list[str]()

    def interrupted(self: PhaseProgress, done: int = 1, note: str = "") -> None:
        advance(self, done, note)
        if self._title == title:
            shown.append(note)
            if len(shown) == steps:
                raise error

    monkeypatch.setattr(PhaseProgress, "advance", interrupted)
    return shown


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("anything else")], ids=["ctrl-c", "error"])
@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("layer", range(1, 7))
def test_at_every_layer(
    place: Place, layer: int, level: int, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = stop_after(layer, "Finetuning layers", error, monkeypatch)
    with pytest.raises(type(error)):
        quantize(place, level=level)
    assert len(shown) == layer
    assert len(set(shown)) == layer, "the layers' names"


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("layer", [1, 6])
def test_in_the_finetune_function(place: Place, layer: int, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(layer, "Finetuning layers", KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        finetune(place, level=level)


@pytest.mark.parametrize("level", [1, 2])
def test_in_calibration(place: Place, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(1, "Calibrating samples", KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantize(place, level=level)


@pytest.mark.parametrize("level", [1, 2])
def test_in_the_reader(place: Place, level: int) -> None:
    class Interrupting(Reader):
        left = 10

        def get_next(self) -> Arrays | None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().get_next()

    with pytest.raises(KeyboardInterrupt):
        quantize(place, level=level, reader=Interrupting(samples(separable_cnn(), 24)))


def test_while_the_result_is_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bytes = Path.write_bytes

    def half(self: Path, content: bytes) -> int:
        write_bytes(self, content[: len(content) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(KeyboardInterrupt):
            quantize(place, level=1)


def test_the_report_of_a_run_that_failed_is_none(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    quantizer.quantize_model(model, None, Reader(samples(model, 24)))
    assert quantizer.report is not None
    stop_after(2, "Finetuning layers", KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        quantizer.quantize_model(model, place.path, Reader(samples(model, 24)))
    assert quantizer.report is None


def test_the_next_run_is_as_if_nothing_had_happened(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    with monkeypatch.context() as patch:
        stop_after(3, "Finetuning layers", KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            quantizer.quantize_model(model, place.path, Reader(samples(model, 24)))
    again = quantizer.quantize_model(model, None, Reader(samples(model, 24)))
    fresh = ModelQuantizer(quantizer.config).quantize_model(model, None, Reader(samples(model, 24)))
    assert again == fresh


def wide_layer() -> onnx.ModelProto:
    """One layer whose solution takes the core about a second."""
    w = Weights(0)
    return build(
        "(float[N,512] x) => (float[N,256] y) { [wide] y = Gemm<transB=1>(x, w, b) }",
        w=w.conv(256, 512),
        b=w.bias(256),
    )


@pytest.fixture
def ctrl_c_after() -> Iterator[Callable[[float], None]]:
    """Sends this process a real signal, whose handler does what Python's does for Ctrl-C; once more after a second, as
    an exception out of a callback of the garbage collector (hypothesis has one) goes nowhere."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def test_a_real_signal_while_the_core_solves(
    place: Place, ctrl_c_after: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_layer()
    data = {"x": np.random.default_rng(0).standard_normal((1200, 512)).astype(np.float32)}
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
    config = QConfig(layer, algo_config=[place.config(level=2)], extra_options={"NumThreads": 1})
    solved = []
    solve = run.solve

    def timed(*arguments: object) -> object:
        ctrl_c_after(0.02)
        report = solve(*arguments)
        solved.append(report)
        return report

    monkeypatch.setattr(run, "solve", timed)
    with pytest.raises(KeyboardInterrupt):
        ModelQuantizer(config).quantize_model(model, place.path, Reader(data, batch=300))
    assert not solved, "the signal came while the core was solving"


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.03, 0.06, 0.1, 0.15])
@pytest.mark.parametrize("level", [1, 2])
def test_a_real_signal_at_any_moment(
    place: Place, seconds: float, level: int, ctrl_c_after: Callable[[float], None]
) -> None:
    """Whatever runs then: preparing, calibrating, the walk, or the core."""
    model = separable_cnn()
    config = QConfig(LAYER, algo_config=[place.config(level=level)])

    ctrl_c_after(seconds)
    try:
        for _ in range(50):
            ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 24)))
        pytest.fail("no signal came")
    except KeyboardInterrupt:
        pass
