"""What a report says first: the verdict, the layers that cost most and why, what to do next; and that it reads back."""

from __future__ import annotations

import json
import math
import operator
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import MODELS, Arrays, Reader, conv1d, mlp, run, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    CalibMethod,
    DataError,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    UInt8Spec,
    finetune,
)
from quark.onnx.measures.deviation import Deviation

pytestmark = pytest.mark.sets_apart

MIN_MAX = Int8Spec(calibration_method=CalibMethod.MinMax)


def config(weight: Int8Spec = MIN_MAX, **options: object) -> QConfig:
    return QConfig(QLayerConfig(UInt8Spec(), weight=weight), **options)


def report_of(model: onnx.ModelProto, configuration: QConfig, count: int = 64) -> Report:
    quantizer = ModelQuantizer(configuration)
    quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantizer.report


def node_output(model: onnx.ModelProto, node: str, data: Arrays) -> np.ndarray:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    name = next(one.output[0] for one in model.graph.node if one.name == node)
    del exposed.graph.output[:]
    exposed.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(exposed, data)[0].astype(np.float64)


def share(want: np.ndarray, have: np.ndarray) -> float:
    return float(((have - want) ** 2).sum() / (want**2).sum())


@pytest.mark.parametrize("model", [separable_cnn(), conv1d(), mlp()], ids=["separable", "conv1d", "mlp"])
def test_the_errors_of_layers_and_their_parts_are_true(model: onnx.ModelProto) -> None:
    """A layer's own error is that of a model in which nothing else is quantized."""
    data = samples(model, 64)
    quantizer = ModelQuantizer(config())
    quantized = quantizer.quantize_model(model, None, Reader(data))
    compared = {name: array[7::8] for name, array in data.items()}
    errors = quantizer.report.layer_errors
    layers = [error.name for error in errors]
    assert layers == [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    for error in errors:
        want = node_output(model, error.name, compared)
        assert (error.samples, error.weight_bits, error.weight_scales) == (8, 8, 1)
        assert error.total == pytest.approx(share(want, node_output(quantized, error.name, compared)), rel=1e-3)
        others = config(exclude=[node.name for node in model.graph.node if node.name != error.name])
        alone = ModelQuantizer(others).quantize_model(model, None, Reader(data))
        assert error.own == pytest.approx(share(want, node_output(alone, error.name, compared)), rel=1e-2)
        assert 0 < error.weights < 1.2 * error.own
        assert error.output_db == pytest.approx(-10 * math.log10(error.total))


def test_a_layer_inherits_what_its_input_has() -> None:
    model, data = separable_cnn(), samples(separable_cnn(), 64)
    quantizer = ModelQuantizer(config())
    quantized = quantizer.quantize_model(model, None, Reader(data))
    compared = {name: array[7::8] for name, array in data.items()}
    error = next(error for error in quantizer.report.layer_errors if error.name == "pw1")
    inputs = []
    for one in (model, quantized):
        exposed = onnx.ModelProto()
        exposed.CopyFrom(one)
        del exposed.graph.output[:]
        node = next(node for node in one.graph.node if node.name == "pw1")
        exposed.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
        inputs.append(run(exposed, compared)[0].astype(np.float64))
    assert error.inherited == pytest.approx(share(*inputs), rel=1e-3)


def test_the_layers_of_a_foreign_model_are_compared_too() -> None:
    """Other tools fold and rename; the plan knows which layers belong together."""
    model = separable_cnn()
    quantized = ModelQuantizer(config()).quantize_model(model, None, Reader(samples(model, 64)))
    for node in quantized.graph.node:
        node.name = f"other_{node.name}"
    _, report = finetune(model, quantized, None, Reader(samples(model, 64)), AdaRoundConfig())
    assert [error.name for error in report.layer_errors] == [layer.name for layer in report.layers]
    assert all(0 < error.own < 1 for error in report.layer_errors)


def test_the_weakest_layers_are_those_that_lose_most_alone() -> None:
    report = report_of(separable_cnn(), config())
    weakest = report.verdict.weakest
    assert len(weakest) == 5
    assert [layer.own_db for layer in weakest] == sorted(error.own_db for error in report.layer_errors)[:5]
    assert weakest[0].cause == "weight scale"
    assert "one scale for all channels" in weakest[0].why


def test_the_advice_to_a_bad_model_makes_it_better() -> None:
    model = separable_cnn()
    plain = report_of(model, config())
    assert plain.verdict.grade == "poor"
    first, second, *_ = plain.verdict.advice
    assert "AdaRoundConfig()" in first
    assert "QuantGranularity.Channel" in second
    channels = Int8Spec(quant_granularity=QuantGranularity.Channel)
    better = report_of(model, config(channels, algo_config=[AdaRoundConfig()]))
    assert better.verdict.grade == "good"
    assert better.end_to_end.after.sqnr_db > plain.end_to_end.after.sqnr_db + 20
    assert "your own metric" in better.verdict.advice[0]


def test_advice_from_the_command_line_is_written_for_it() -> None:
    report = replace(report_of(separable_cnn(), config()), interface="command line")
    first, second, *_ = report.verdict.advice
    assert first == "finetune: --adaround"
    assert second.endswith("--weight-quant-granularity Channel")
    for text in (" ".join(str(report).split()), report.to_html()):
        assert second in text
        assert "QuantGranularity.Channel" not in text
        assert "report.full()" not in text


@pytest.mark.parametrize(("name", "quoted"), [("a/b", "a/b"), ("the layer", "'the layer'")])
def test_names_in_advice_are_quoted_for_the_shell(name: str, quoted: str) -> None:
    report = report_of(mlp(), config())
    layers = tuple(replace(e, name=name, own=1.0, weights=1.0, weight_scales=8) for e in report.layer_errors[:1])
    report = replace(report, layer_errors=layers, interface="command line")
    assert f"leave the weakest layers in float: --exclude {quoted}" in report.verdict.advice


def test_finetuning_that_did_not_help_is_told() -> None:
    """A little worse is within chance, so it is not taken back: but nobody should read that it is good and go on."""
    report = report_of(mlp(), config(algo_config=[AdaRoundConfig()]))
    result = report.end_to_end
    assert not result.is_worse
    assert "did not help" not in str(report)
    worse = replace(report, end_to_end=replace(result, before=result.after, after=result.before))
    assert worse.verdict.headline.startswith(f"{worse.verdict.grade.capitalize()}, and AdaRound did not help: SQNR ")
    assert any(text.startswith("leave finetuning out") for text in worse.verdict.advice)


@pytest.mark.parametrize(
    ("error", "agreement", "samples", "grade"),
    [
        (0.009, 1.0, 50, "good"),
        (0.009, None, 50, "good"),
        (0.009, 7 / 8, 8, "good"),  # one sample of eight
        (0.009, 0.9, 50, "fair"),
        (0.011, 1.0, 50, "fair"),
        (0.099, 0.76, 50, "fair"),
        (0.009, 0.7, 50, "poor"),
        (0.11, 1.0, 50, "poor"),
        (math.inf, None, 50, "poor"),
    ],
)
def test_grades(error: float, agreement: float | None, samples: int, grade: str) -> None:
    report = report_of(mlp(), config())
    after = Deviation(l2=1.0, sqnr_db=20.0, agreement=agreement, error=error)
    result = replace(report.end_to_end, after=after, samples=samples)
    verdict = replace(report, end_to_end=result).verdict
    assert verdict.grade == grade
    assert verdict.headline.startswith(grade.capitalize())


def test_nothing_compared_is_no_grade() -> None:
    report = replace(report_of(mlp(), config()), end_to_end=None)
    assert report.verdict.grade == "unknown"
    assert "Not compared" in str(report).splitlines()[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("algorithms", [[], [AdaRoundConfig()]], ids=["plain", "adaround"])
def test_a_printed_report_fits_a_terminal(name: str, algorithms: list[AdaRoundConfig]) -> None:
    """80 columns of ASCII, and not longer than a screen or two, however large the model."""
    report = report_of(MODELS[name](), config(algo_config=algorithms))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 48
    assert set(str(report)) <= set(string.printable)
    assert report.verdict.headline in str(report)
    assert len(repr(report)) < 200


def test_long_names_do_not_break_the_page() -> None:
    report = report_of(separable_cnn(), config())
    named = tuple(replace(error, name=f"/features/{'block/' * 40}{error.name}") for error in report.layer_errors)
    assert max(map(len, str(replace(report, layer_errors=named)).splitlines())) <= 80


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_full_report_is_as_wide_as_asked_for(width: int) -> None:
    report = report_of(separable_cnn(), config(algo_config=[AdaRoundConfig()]))
    text = report.full(width)
    assert max(map(len, text.splitlines())) <= width
    if width > 60:
        assert all(layer.name in text for layer in report.layers)


def test_sizes() -> None:
    model = separable_cnn()
    excluded = report_of(model, config(exclude=["classes"])).sizes
    sizes = report_of(model, config()).sizes
    weights = sum(math.prod(tensor.dims) for tensor in model.graph.initializer if len(tensor.dims) > 1)
    constants = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    assert sizes.float_bytes == 4 * constants
    assert weights + 4 * (constants - weights) < sizes.quantized_bytes < sizes.float_bytes
    assert (sizes.integer_layers, sizes.float_layers) == (6, 0)
    assert (excluded.integer_layers, excluded.float_layers) == (5, 1)


def test_the_configuration_is_kept_callables_too() -> None:
    algorithm = AdaRoundConfig(evaluator=operator.length_hint, selective_update=True)
    kept = report_of(mlp(), config(algo_config=[algorithm])).configuration
    assert kept["kind"] == "QConfig"
    assert kept["global_config"]["weight"]["calibration_method"] == "CalibMethod.MinMax"
    assert kept["algo_config"][0]["kind"] == "AdaRoundConfig"
    assert "length_hint" in kept["algo_config"][0]["evaluator"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("algorithms", [[], [AdaRoundConfig()]], ids=["plain", "adaround"])
def test_a_written_report_reads_back(name: str, algorithms: list[AdaRoundConfig], tmp_path: Path) -> None:
    report = report_of(MODELS[name](), config(algo_config=algorithms))
    report.to_json(tmp_path / "run.json")
    read = Report.load(tmp_path / "run.json")
    assert read.to_dict() == report.to_dict()
    assert str(read) == str(report)
    assert read.full(100) == report.full(100)
    assert Report.from_dict(report.to_dict()).verdict == read.verdict


def test_infinities_read_back() -> None:
    """A model without an error has an SQNR that JSON cannot write."""
    report = report_of(mlp(), config())
    exact = Deviation(l2=0.0, sqnr_db=math.inf, agreement=1.0)
    lost = Deviation(l2=math.inf, sqnr_db=-math.inf, agreement=None, error=math.inf)
    written = replace(report, end_to_end=replace(report.end_to_end, before=lost, after=exact))
    read = Report.from_dict(json.loads(written.to_json()))
    assert (read.end_to_end.before, read.end_to_end.after) == (lost, exact)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not a report"),
        ("[]", "expected the fields of a Report"),
        ('{"algorithm": null}', "not a whole Report"),
        ('{"algorithm": null, "samples": "many"}', r"samples: got 'many', expected a int"),
        ('{"algorithm": null, "samples": 3, "extra": 1}', "no field 'extra'"),
        (
            '{"algorithm": null, "samples": 3, "interface": "fax"}',
            "got 'fax', expected one of 'python', 'command line'",
        ),
        ('{"algorithm": null, "samples": 3, "layers": [{"name": "a", "op_type": "Conv"}]}', "not a whole LayerReport"),
    ],
)
def test_what_is_no_report_is_told(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=message) as told:
        Report.load(tmp_path / "run.json")
    assert "run.json" in str(told.value)


def test_a_report_of_an_earlier_version_reads() -> None:
    report = report_of(mlp(), config())
    earlier = {
        key: value
        for key, value in report.to_dict().items()
        if key not in ("layer_errors", "activations", "sizes", "configuration")
    }
    assert str(Report.from_dict(earlier)).splitlines()[0] == report.verdict.headline
