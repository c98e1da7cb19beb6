"""save_dir: a run that was interrupted goes on where it was, to the bits of a run that was not."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import statically_quantized
from small_models import MODELS, Arrays, Reader, Weights, build, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    CLEConfig,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.errors import ConfigError, DataError
from quark.onnx.report.report import Report
from quark.onnx.resume import saved_run
from quark.onnx.resume.records import Records

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
Result = tuple[onnx.ModelProto, Report]
Run = Callable[[Path | None], Result]


class Stopped(BaseException):
    """In place of a kill."""


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends when it has written so many records; other threads write no more either."""
    put, left, counting = Records.put, count, Lock()

    def counted(self: Records, name: str, record: object) -> None:
        nonlocal left
        with counting:
            if left > 0:
                put(self, name, record)
            left -= 1
            if left <= 0:
                raise Stopped

    monkeypatch.setattr(Records, "put", counted)


def quantizing(model: onnx.ModelProto, config: QConfig, data: Arrays | None = None) -> Run:
    def run(save_dir: Path | None) -> Result:
        quantizer = ModelQuantizer(config)
        reader = Reader(samples(model, 40) if data is None else data, batch=8)
        quantized = quantizer.quantize_model(model, None, reader, save_dir=save_dir)
        assert quantized is not None
        assert quantizer.report is not None
        return quantized, quantizer.report

    return run


def finetuning(config: AdaRoundConfig | QConfig) -> Run:
    model = separable_cnn()
    data = samples(model, 40)
    quantized = statically_quantized(model, data)

    def run(save_dir: Path | None) -> Result:
        return quark.onnx.finetune(model, quantized, None, Reader(data, batch=8), config, save_dir=save_dir)

    return run


def timeless(report: Report) -> str:
    """All that the report says, but for time, memory and what was resumed."""
    return str(
        replace(
            report,
            layers=tuple(replace(one, seconds=0, solve_seconds=0) for one in report.layers),
            corrections=tuple(replace(one, seconds=0, solve_seconds=0) for one in report.corrections),
            notes=tuple(note for note in report.notes if not note.startswith("resumed: ")),
            phases={},
            peak_rss_mib=None,
        )
    )


def stopped_behind_every_record(run: Run, save_dir: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Goes on behind each, and ends as without interruption; how often it was stopped."""
    (expected, plain), stops, went_on = run(None), 0, None
    while went_on is None:
        with monkeypatch.context() as patch:
            stop_after(1 if stops else 2, patch)  # the first one says what run it is
            try:
                went_on = run(save_dir)
            except Stopped:
                stops += 1
                assert os.listdir(save_dir)
    found, report = went_on
    assert found.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert timeless(report) == timeless(plain)
    assert os.listdir(save_dir) == []
    assert not [note for note in plain.notes if "resumed" in note]
    (note,) = [note for note in report.notes if note.startswith("resumed: ")]
    assert note.endswith(f" taken from save_dir {os.fspath(save_dir)!r}")
    return stops


ALGORITHMS = {
    "adaround": [AdaRoundConfig()],
    "adaquant, level 0": [AdaQuantConfig(mem_opt_level=0)],
    "level 2": [AdaRoundConfig(mem_opt_level=2)],
    "gradient": [AdaRoundConfig(solver="gradient", num_iterations=20)],
    "gradient, level 2": [AdaQuantConfig(solver="gradient", num_iterations=20, mem_opt_level=2)],
    "both solvers": [AdaRoundConfig(num_iterations=20, drop_ratio=0.5)],
    "selective": [AdaRoundConfig(selective_update=True)],
    "bias correction": [BiasCorrectionConfig()],
    "all": [CLEConfig(cle_steps=-1), BiasCorrectionConfig(), AdaQuantConfig(selective_update=True)],
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quantizing(separable_cnn(), QConfig(LAYER, algo_config=ALGORITHMS[name]))
    assert stopped_behind_every_record(run, tmp_path / "saved", monkeypatch) >= 7  # the data, and six layers


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quantizing(MODELS[name](), QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    assert stopped_behind_every_record(run, tmp_path, monkeypatch) >= 2


@pytest.mark.parametrize(
    "config",
    [
        QConfig(LAYER),
        QConfig(QLayerConfig(UInt8Spec(), weight=Int4Spec())),
        QConfig(LAYER, extra_options={"CalibDataSize": 16}),
    ],
    ids=["default", "4 bits", "CalibDataSize"],
)
def test_without_an_algorithm(config: QConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = quantizing(separable_cnn(), config)
    assert stopped_behind_every_record(run, tmp_path, monkeypatch) == 1


@pytest.mark.parametrize(
    "config",
    [AdaRoundConfig(), QConfig(LAYER, algo_config=[BiasCorrectionConfig(), AdaQuantConfig(selective_update=True)])],
    ids=["alone", "QConfig"],
)
def test_the_finetune_function(
    config: AdaRoundConfig | QConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped_behind_every_record(finetuning(config), tmp_path, monkeypatch) >= 7


def test_shared_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w = Weights(3)
    model = build(
        """(float[N,8] x) => (float[N,4] y) {
            [one] a = Gemm<transB=1>(x, w, b1) r = Relu(a) [two] b = Gemm<transB=1>(r, w, b2) s = Relu(b)
            [last] y = Gemm<transB=1>(s, v, c)
        }""",
        w=w.conv(8, 8), b1=w.bias(8), b2=w.bias(8), v=w.conv(4, 8), c=w.bias(4),
    )  # fmt: skip
    run = quantizing(model, QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    assert stopped_behind_every_record(run, tmp_path, monkeypatch) == 3, "the data, the shared weight, the last layer"


def test_in_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in any order."""
    run = quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig(parallel=True)]))
    expected, plain = run(None)
    for left in (2, 3, 1):
        with monkeypatch.context() as patch:
            stop_after(left, patch)
            with pytest.raises(Stopped):
                run(tmp_path)
    found, report = run(tmp_path)
    assert found == expected
    assert timeless(report) == timeless(plain)


def test_what_is_kept_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def evaluator(session: onnxruntime.InferenceSession) -> float:
        asked.append(session)
        return float(len(asked))

    config = QConfig(LAYER, algo_config=[AdaRoundConfig(selective_update=True, evaluator=evaluator)])
    run = quantizing(separable_cnn(), config)
    run(None)
    in_one, stops = len(asked), 0
    assert in_one > 3
    asked.clear()
    while True:
        with monkeypatch.context() as patch:
            stop_after(2, patch)
            if stops:
                patch.setattr("quark.onnx.quantization.plain_quantization.calibrate", None)
            try:
                run(tmp_path)
            except Stopped:
                stops += 1
            else:
                break
    assert len(asked) == in_one
    assert stops > 5


def test_threads_memory_and_files_may_be_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def config(level: int, **options: object) -> QConfig:
        return QConfig(LAYER, algo_config=[AdaRoundConfig(mem_opt_level=level)], extra_options=options)

    expected, _ = quantizing(separable_cnn(), config(1))(None)
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        with pytest.raises(Stopped):
            quantizing(separable_cnn(), config(0, NumThreads=1))(tmp_path)
    found, report = quantizing(separable_cnn(), config(2, NumThreads=3))(tmp_path)
    assert found == expected
    assert "resumed: 2 layers and the statistics of calibration taken" in report.notes[-1]


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A save_dir with some layers in it."""
    with monkeypatch.context() as patch:
        stop_after(5, patch)
        with pytest.raises(Stopped):
            quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig()]))(tmp_path)
    return tmp_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_model_is_refused(stopped: Path) -> None:
    before = content(stopped)
    config = QConfig(LAYER, algo_config=[AdaRoundConfig()])
    with pytest.raises(ConfigError, match=r"another run: the float model differs\. Give another save_dir"):
        quantizing(separable_cnn(seed=1), config)(stopped)
    assert content(stopped) == before


@pytest.mark.parametrize(
    "config",
    [
        QConfig(LAYER, algo_config=[AdaRoundConfig(fixed_seed=1)]),
        QConfig(LAYER, algo_config=[AdaQuantConfig()]),
        QConfig(LAYER, algo_config=[AdaRoundConfig()], exclude=["stem"]),
        QConfig(LAYER, algo_config=[AdaRoundConfig()], extra_options={"FuseGelu": False}),
        QConfig(LAYER, algo_config=[AdaRoundConfig(lr_adjust=lambda _: 0.5)]),
    ],
    ids=["seed", "algorithm", "exclude", "extra option", "callable"],
)
def test_another_configuration_is_refused(config: QConfig, stopped: Path) -> None:
    with pytest.raises(ConfigError, match="another run: the configuration differs"):
        quantizing(separable_cnn(), config)(stopped)


@pytest.mark.parametrize("change", ["value", "order", "fewer", "batch"])
def test_other_data_is_refused(change: str, stopped: Path) -> None:
    before, x = content(stopped), samples(separable_cnn(), 40)["x"]
    if change == "value":
        x[17, 0, 0, 0] += 1e-3
    elif change == "order":
        x = x[::-1].copy()
    elif change == "fewer":
        x = x[:39]
    reader = Reader({"x": x}, batch=4 if change == "batch" else 8)
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    with pytest.raises(DataError, match="on other calibration data: the reader must give the same items in the same"):
        quantizer.quantize_model(separable_cnn(), None, reader, save_dir=stopped)
    assert content(stopped) == before


def test_another_version_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = saved_run.version
    monkeypatch.setattr(saved_run, "version", lambda name: "0" if name == "onnxruntime" else version(name))
    with pytest.raises(ConfigError, match="another run: the version of onnxruntime differs"):
        quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig()]))(stopped)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    records = Records(tmp_path)
    run = quantizing(separable_cnn(), QConfig(LAYER))
    with pytest.raises(ConfigError, match="used by another process"):
        run(tmp_path)
    records.close()
    run(tmp_path)


def test_the_folder_of_the_output_is_refused(tmp_path: Path) -> None:
    """A save has it to itself for a moment, and would wait for its own run."""
    quantizer = ModelQuantizer(QConfig(LAYER))
    model = separable_cnn()
    with pytest.raises(ConfigError, match="the folder of the output"):
        quantizer.quantize_model(model, tmp_path / "q.onnx", Reader(samples(model, 8)), save_dir=tmp_path)


def test_what_is_half_written_or_damaged_is_not_read(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    layers = sorted(stopped.glob("quark_onnx.tune1-*"))
    assert len(layers) == 3
    layers[0].write_bytes(layers[0].read_bytes()[:-1])
    broken = bytearray(layers[1].read_bytes())
    broken[len(broken) // 2] ^= 1
    layers[1].write_bytes(broken)
    (stopped / (layers[2].name + ".part")).write_bytes(b"half")
    (stopped / "theirs.txt").write_bytes(b"theirs")
    run = quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    found, report = run(stopped)
    assert found == run(None)[0]
    assert "resumed: 1 layers" in report.notes[-1]
    assert caplog.text.count("is damaged and left out") == 2
    assert os.listdir(stopped) == ["theirs.txt"]


def test_records_without_their_run_are_refused(stopped: Path) -> None:
    (stopped / "quark_onnx.run.record").write_bytes(b"")
    with pytest.raises(ConfigError, match="records of a run that it does not tell"):
        quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig()]))(stopped)


@pytest.mark.parametrize("removed", range(5))
def test_stopped_while_the_records_go(removed: int, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink, left = Path.unlink, removed

    def counted(self: Path, missing_ok: bool = False) -> None:
        nonlocal left
        if left == 0:
            raise Stopped
        left -= 1
        unlink(self, missing_ok)

    run = quantizing(separable_cnn(), QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", counted)
        with pytest.raises(Stopped):
            run(stopped)
    found, _ = run(stopped)
    assert found == run(None)[0]
    assert os.listdir(stopped) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        quantizing(separable_cnn(), QConfig(LAYER))(tmp_path / "file" / "saved")


def test_strings_are_part_of_the_data(tmp_path: Path) -> None:
    digests = []
    for strings in (["a", "b"], ["ab", ""]):
        run = saved_run.SavedRun(tmp_path, {})
        list(run.watched(iter([{"s": np.array(strings, object)}])))
        digests.append(run._data.hexdigest())
        run.__exit__()
    assert digests[0] != digests[1]
