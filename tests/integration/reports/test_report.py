"""The report: what it says about layers, the whole model, time and memory is true."""

from __future__ import annotations

import builtins
import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from rich.console import Console
from small_models import (
    MODELS,
    Arrays,
    Reader,
    Weights,
    apart,
    build,
    conv1d,
    fitted,
    mlp,
    run,
    samples,
    scaled,
    separable_cnn,
)

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    OutOfMemoryError,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.whole_model.whole_model import WholeModel

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))


class OnnxruntimeReader(Reader, CalibrationDataReader):
    """onnxruntime insists on its own base class."""


def quantized_and_report(
    model: onnx.ModelProto, algorithm: AdaRoundConfig | None, count: int = 40
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm] if algorithm else []))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantized, quantizer.report


def layer_outputs(model: onnx.ModelProto, data: Arrays) -> Arrays:
    """What the Conv, Gemm and MatMul nodes give, by node name, as (rows, channels)."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in layers)
    outputs = {}
    for node, value in zip(layers, run(exposed, data), strict=True):
        channels_last = np.moveaxis(value, 1, -1) if node.op_type == "Conv" else value
        outputs[node.name] = channels_last.reshape(-1, channels_last.shape[-1]).astype(np.float64)
    return outputs


def over_all_rows(layer: LayerReport, pair: tuple[float, float]) -> float:
    return float(np.average(pair, weights=layer.rows))


def assert_errors_are_true(
    float_model: onnx.ModelProto, plain: onnx.ModelProto, tuned: onnx.ModelProto, report: Report, data: Arrays
) -> None:
    want, before, after = (layer_outputs(model, data) for model in (float_model, plain, tuned))
    for index, layer in enumerate(report.layers):
        y = want[layer.name]
        assert sum(layer.rows) == len(y)
        assert layer.outputs == y.shape[1]
        assert over_all_rows(layer, layer.power) == pytest.approx((y**2).sum(1).mean(), rel=1e-4)
        # A layer is judged with the layers before it as they are in the end.
        error = ((after[layer.name] - y) ** 2).sum(1).mean()
        assert over_all_rows(layer, layer.after) == pytest.approx(error, rel=1e-3)
        if index == 0:
            error = ((before[layer.name] - y) ** 2).sum(1).mean()
            assert over_all_rows(layer, layer.before) == pytest.approx(error, rel=1e-3)
        if layer.accepted:
            assert layer.after[1] < layer.before[1], "held-out rows decide"
        else:
            assert layer.after == layer.before


@pytest.mark.parametrize("algorithm", [AdaRoundConfig(), AdaQuantConfig()], ids=["adaround", "adaquant"])
@pytest.mark.parametrize("model", [separable_cnn(), conv1d()], ids=["separable", "conv1d"])
def test_the_errors_of_the_layers_are_true(model: onnx.ModelProto, algorithm: AdaRoundConfig) -> None:
    tuned, report = quantized_and_report(model, algorithm)
    plain, _ = quantized_and_report(model, None)
    assert_errors_are_true(model, plain, tuned, report, fitted(samples(model, 40)))


def test_the_errors_of_layers_with_factors_are_true(tmp_path: Path) -> None:
    w = Weights(0)
    gains = w.gains(24)
    model = build(
        """(float[N,12] x) => (float[N,5] y) {
            [first] t1 = Gemm<alpha=0.25, beta=2.0, transB=1>(x, first_w, first_b)
            [relu] t2 = Relu(t1)
            [second] y = Gemm<alpha=-3.0>(t2, second_w)
        }""",
        first_w=4 * scaled(w.conv(24, 12), gains), first_b=w.bias(24) * gains,
        second_w=w.conv(5, 24, gains=gains).T,
    )  # fmt: skip
    data = samples(model, 60)
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "q.onnx", OnnxruntimeReader(data))
    plain = onnx.load(tmp_path / "q.onnx")
    tuned, report = finetune(model, plain, None, Reader(data), AdaRoundConfig())
    assert any(layer.accepted for layer in report.layers)
    assert_errors_are_true(model, plain, tuned, report, fitted(data))


def deviation(want: np.ndarray, have: np.ndarray) -> tuple[float, float, float]:
    want, have = want.astype(np.float64), have.astype(np.float64)
    norms = np.sqrt(((want - have) ** 2).sum(1))
    return (
        norms.mean(),
        10 * math.log10((want**2).sum() / (norms**2).sum()),
        float((want.argmax(1) == have.argmax(1)).mean()),
    )


@pytest.mark.parametrize(("count", "compared"), [(8, slice(None)), (24, slice(4, None, 5)), (64, slice(7, None, 8))])
def test_the_comparison_of_the_whole_models_is_true(count: int, compared: slice) -> None:
    model = separable_cnn()
    tuned, report = quantized_and_report(model, AdaRoundConfig(), count)
    plain, _ = quantized_and_report(model, None, count)
    data = {name: array[compared] for name, array in samples(model, count).items()}
    result = report.end_to_end
    assert (result.samples, result.held_out) == ({8: 8, 24: 4, 64: 8}[count], count >= 40)
    assert any("optimistic" in note for note in report.notes) == (count < 40)
    want = run(model, data)[0]
    for have, told in (
        (run(plain, data), result.before),
        (run(tuned, data), result.after),
        (run(plain, data, optimise=True), result.before_default),
        (run(tuned, data, optimise=True), result.after_default),
    ):
        assert (told.l2, told.sqnr_db, told.agreement) == pytest.approx(deviation(want, have[0]), rel=1e-3)
    assert result.after.l2 < result.before.l2
    assert [line for line in report.warnings if "calibration samples" not in line] == []


def test_outputs_that_are_no_classes_have_no_agreement() -> None:
    _, report = quantized_and_report(conv1d(), AdaRoundConfig())
    assert report.end_to_end.after.agreement is None
    assert report.end_to_end.after.sqnr_db > 10


def test_every_layer_is_described() -> None:
    model = separable_cnn()
    _, report = quantized_and_report(model, AdaRoundConfig())
    shapes = {layer.name: (layer.op_type, layer.inputs, layer.outputs) for layer in report.layers}
    assert shapes == {
        "stem": ("Conv", 27, 8),
        "dw1": ("Conv", 9, 8),
        "pw1": ("Conv", 8, 16),
        "dw2": ("Conv", 9, 16),
        "pw2": ("Conv", 16, 16),
        "classes": ("Gemm", 16, 10),
    }
    for layer in report.layers:
        assert layer.accepted == (layer.reason == "")
        assert layer.accepted == (layer.candidate != "unchanged")
        assert 0 < layer.solve_seconds < layer.seconds < 60
        assert all(rows > 0 for rows in layer.rows)
    assert (report.algorithm, report.samples) == ("adaround", 40)
    assert sum(layer.seconds for layer in report.layers) <= report.phases["finetune"]


def test_too_little_data_is_a_reason() -> None:
    _, report = quantized_and_report(mlp(), AdaRoundConfig(), count=2)
    assert not any(layer.accepted for layer in report.layers)
    assert all("too little data" in layer.reason for layer in report.layers)
    assert report.warnings, "nothing got better"


def test_time_and_memory() -> None:
    _, report = quantized_and_report(separable_cnn(), AdaRoundConfig())
    assert list(report.phases) == [
        "load", "prepare", "calibrate", "insert Q/DQ", "plan", "compare", "finetune", "compare layers"
    ]  # fmt: skip
    assert all(seconds >= 0 for seconds in report.phases.values())
    resource = pytest.importorskip("resource")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # the system counts both in batches of pages
    assert 20 < report.peak_rss_mib <= most + 4


def test_peak_memory_is_that_of_this_process() -> None:
    """Not of the one that started it, which getrusage counts too until the child becomes another program."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell")
    child = "from quark.onnx.system.resources import peak_rss_mib as p; print(p())"
    ours = np.ones(600 << 20, np.uint8)
    told = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True)
    assert ours.all()
    assert 20 < float(told.stdout) < 500


def test_the_report_is_text_in_a_notebook_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """There rich shows what it is given instead of writing it to a file."""
    _, report = quantized_and_report(mlp(), None)
    outside = str(report), report.full(300)
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr(builtins, "get_ipython", shell, raising=False)
    assert Console().is_jupyter
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (str(report), report.full(300)) == outside
    assert all(outside)


def test_saving_is_a_phase(tmp_path: Path) -> None:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig()]))
    quantizer.quantize_model(model, tmp_path / "q.onnx", Reader(samples(model, 12)))
    assert quantizer.report.phases["save"] > 0


def test_the_report_of_plain_quantization() -> None:
    _, report = quantized_and_report(separable_cnn(), None)
    assert (report.algorithm, report.samples, report.layers) == (None, 40, ())
    assert list(report.phases) == ["load", "prepare", "calibrate", "insert Q/DQ", "compare", "compare layers"]
    assert "40 calibration samples" in report.full(300)


def test_plain_quantization_says_how_near_it_is() -> None:
    """On samples that took no part in it, and in its first line."""
    model = separable_cnn()
    plain, report = quantized_and_report(model, None, 64)
    result, data = report.end_to_end, apart(samples(model, 64))
    assert (result.samples, result.held_out, result.before) == (8, True, result.after)
    for told, optimise in ((result.after, False), (result.after_default, True)):
        want, have = run(model, data)[0], run(plain, data, optimise=optimise)[0]
        assert (told.l2, told.sqnr_db, told.agreement) == pytest.approx(deviation(want, have), rel=1e-3)
    first = str(report).splitlines()[0]
    assert first == f"Poor: SQNR {result.after.sqnr_db:.1f} dB, agreement 100.0 % of 8 held-out samples"


def test_samples_set_apart_have_no_part_in_the_model() -> None:
    """Whatever they are, the quantized model is the same."""
    model, data = separable_cnn(), samples(separable_cnn(), 64)
    others = {name: np.where(np.arange(64)[:, None, None, None] % 8 == 7, 9, array) for name, array in data.items()}
    models = [
        ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig(keep_worse=True)])).quantize_model(
            model, None, Reader(arrays, batch=batch)
        )
        for arrays, batch in ((data, 1), (others, 1), (data, 10), (others, 64))
    ]
    assert models[0] == models[1] == models[2] == models[3]


def test_no_report_before_the_first_run() -> None:
    assert ModelQuantizer(QConfig(LAYER)).report is None


@pytest.mark.parametrize("name", MODELS)
def test_json(name: str, tmp_path: Path) -> None:
    _, report = quantized_and_report(MODELS[name](), AdaRoundConfig(log_period=7))
    text = report.to_json(tmp_path / "report.json")
    assert json.loads(text) == json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    read = json.loads(text)
    assert set(read) == {field.name for field in fields(Report)}
    assert [layer["name"] for layer in read["layers"]] == [layer.name for layer in report.layers]
    assert read["layers"][0]["after"] == list(report.layers[0].after)
    assert read["end_to_end"]["after"]["l2"] == report.end_to_end.after.l2
    assert read["phases"] == dict(report.phases)


def test_json_has_no_numbers_that_json_does_not_know() -> None:
    _, report = quantized_and_report(mlp(), AdaRoundConfig(), count=2)
    assert any(math.isnan(layer.before[0]) for layer in report.layers)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(report.to_json(), parse_constant=refuse)
    assert read["layers"][0]["before"] == [None, None]


def test_the_printed_table() -> None:
    model = separable_cnn()
    _, report = quantized_and_report(model, AdaRoundConfig(target_op_type=["Conv"], learning_rate=0.2))
    text = report.full(140)
    for layer in report.layers:
        line = next(line for line in text.splitlines() if f" {layer.name} " in line)
        after = [10 * math.log10(p / e) for p, e in zip(layer.power, layer.after, strict=True)]
        assert f"{after[0]:.1f} | {after[1]:.1f}" in line
    for part in (
        "L2",
        "SQNR",
        "agreement",
        "5 held-out samples",
        "40 calibration samples",
        "peak memory",
        "finetune",
    ):
        assert part in text
    assert "learning_rate=0.2 has no effect" in text


@pytest.mark.parametrize(
    "options",
    [
        {"num_iterations": 10},
        {"learning_rate": 0.5},
        {"early_stop": True, "batch_size": 4},
        {"beta_range": (10, 1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_without_effect_are_named(options: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    _, report = quantized_and_report(separable_cnn(), AdaRoundConfig(**options), count=12)
    assert len(report.ignored) == len(options)
    for name, line in zip(
        options, sorted(report.ignored, key=lambda line: list(options).index(line.split("=")[0])), strict=True
    ):
        assert line.startswith(f"{name}=")
        assert "has no effect" in line
        assert line in caplog.messages
        assert name in report.full(300)


def test_the_documented_arguments_are_not_complained_about() -> None:
    documented = AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)
    _, report = quantized_and_report(separable_cnn(), documented, count=12)
    assert report.ignored == ()


def test_a_run_that_did_not_help_warns(caplog: pytest.LogCaptureFixture) -> None:
    _, report = quantized_and_report(mlp(), AdaRoundConfig(), count=2)
    warning, *_ = (line for line in report.warnings if "calibration samples" not in line)
    assert "did not bring the whole model closer" in warning
    assert warning in caplog.messages
    assert warning.split(":")[0] in report.full(300)


@pytest.mark.parametrize("error", [OutOfMemoryError("short"), KeyError("joined"), OSError("full")])
def test_a_plain_model_is_delivered_though_it_cannot_be_compared(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(WholeModel, "start", failing)
    plain, report = quantized_and_report(separable_cnn(), None)
    assert any(node.op_type == "QuantizeLinear" for node in plain.graph.node)
    assert report.end_to_end is None
    assert any("was not compared" in warning and type(error).__name__ in warning for warning in report.warnings)
