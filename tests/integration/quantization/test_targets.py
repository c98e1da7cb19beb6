"""quantize(target=...): what was asked for is kept, by onnxruntime's default run of the model on other samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Arrays, build, run, samples, separable_cnn

from quark.onnx import (
    AutoMixprecisionConfig,
    ConfigError,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    Target,
    UInt8Spec,
    UInt16Spec,
    UnsupportedError,
    quantize,
)
from quark.onnx.cli.main import main

PLAIN = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))


def sqnr(model: onnx.ModelProto, quantized: onnx.ModelProto, data: Arrays) -> float:
    (want,), (have,) = run(model, data), run(quantized, data, optimise=True)
    want = want.astype(np.float64)
    return float(10 * np.log10((want**2).sum() / ((have - want) ** 2).sum()))


@pytest.mark.parametrize("algorithms", ["plain", "adaround"])
def test_a_ratio_is_reached_with_fewer_bits_than_16_everywhere(algorithms: str) -> None:
    model = separable_cnn()
    data, other = samples(model, 48), samples(model, 16, seed=1)
    config = PLAIN if algorithms == "plain" else None
    before, _ = quantize(model, None, data, config)
    wanted = sqnr(model, before, other) + 6
    result, report = quantize(model, None, data, config, target=Target(sqnr_db=wanted, validation=other))
    said = report.target
    assert said.reached
    assert said.held_out
    assert sqnr(model, result, other) == pytest.approx(said.best.measured, abs=0.05)
    assert said.best.measured >= wanted
    assert 8 < said.best.weight_bits + said.best.activation_bits - 8 < 40
    assert Report.from_dict(report.to_dict()).target == said
    assert "is reached" in str(report)
    onnx.checker.check_model(result, full_check=True)


def test_a_budget_of_bytes_gives_4_bits_to_what_can_do_with_them() -> None:
    model = separable_cnn()
    data = samples(model, 48)
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=QuantGranularity.Channel))
    whole, plain = quantize(model, None, data, QConfig(layer))
    budget = int(0.8 * plain.sizes.quantized_bytes)
    result, report = quantize(model, None, data, QConfig(layer), target=Target(max_bytes=budget))
    assert report.target.reached
    assert report.sizes.quantized_bytes <= budget
    assert "Int4 per channel" in report.target.weights
    assert sqnr(model, result, data) > 0.3 * sqnr(model, whole, data)


def test_boxes_beside_scores_get_more_bits_and_nothing_else_does() -> None:
    random = np.random.default_rng(0)
    model = build(
        """(float[N,8] x) => (float[N,8] y) {
            [large] a = Gemm(x, a_w, a_b) [small] b = Gemm(x, b_w, b_b) [joint] y = Concat<axis=1>(a, b)
        }""",
        a_w=300 * random.normal(size=(8, 4)), a_b=random.normal(size=4),
        b_w=0.1 * random.normal(size=(8, 4)), b_b=0.1 * random.normal(size=4),
    )  # fmt: skip
    data = samples(model, 64)

    def small(want: np.ndarray, have: np.ndarray) -> float:
        return float(np.square(want[:, 4:] - have[:, 4:]).mean() / want[:, 4:].var())

    target = Target(max_distance=0.01, distance=small, activations=[UInt8Spec(), UInt16Spec()])
    result, report = quantize(model, None, data, QConfig(PLAIN.global_config, QuantizeAllOpTypes=True), target=target)
    assert report.target.reached
    assert report.target.activations["UInt16"] < sum(report.target.activations.values())
    (want,), (have,) = run(model, data), run(result, data, optimise=True)
    assert small(want, have) < 0.02


def test_an_evaluator_judges(tmp_path: Path) -> None:
    model = separable_cnn()
    data = samples(model, 32)
    want = run(model, data)[0].argmax(axis=1)

    def agreement(session) -> float:
        return float((session.run(None, data)[0].argmax(axis=1) == want).mean())

    path = tmp_path / "mixed.onnx"
    report = quantize(model, path, data, PLAIN, target=Target(max_drop=0.04, evaluator=agreement))
    assert report.target.wanted == pytest.approx(0.96)
    have = run(onnx.load(path), data, optimise=True)[0].argmax(axis=1)
    assert (have == want).mean() == pytest.approx(report.target.best.measured, abs=0.04)


def test_what_cannot_be_reached_is_said_and_the_nearest_is_saved(tmp_path: Path) -> None:
    model = separable_cnn()
    data = samples(model, 24)
    path = tmp_path / "mixed.onnx"
    target = Target(sqnr_db=300.0, weights=[Int8Spec()], activations=[UInt8Spec()])
    report = quantize(model, path, data, PLAIN, target=target)
    assert not report.target.reached
    assert path.exists()
    assert any("NOT reached" in warning for warning in report.warnings)


def test_layers_that_are_left_out_keep_their_format() -> None:
    model = separable_cnn()
    data = samples(model, 32)
    other = QLayerConfig(UInt16Spec(), weight=Int8Spec())
    algorithm = AutoMixprecisionConfig(
        target_layer_config=other, include_layers=["classes"], metric_default="cosine", metric_threshold=1e-12,
        worker_num=2,
    )  # fmt: skip
    quantizer = ModelQuantizer(QConfig(PLAIN.global_config, algo_config=[algorithm]))
    quantizer.quantize_model(model, None, data)
    said = quantizer.report.target
    assert not said.reached
    assert sum(said.activations.values()) == 1
    assert [one.activation_bits for one in said.tries] == [8, 16]
    assert any("worker_num=2 has no effect" in line for line in quantizer.report.ignored)


def test_what_does_not_go(tmp_path: Path) -> None:
    model = build("(float[N,4,4] x) => (float[N,4,4] y) { [layer] y = MatMul(x, w) }", w=np.eye(4))
    data = samples(model, 20)
    with pytest.raises(ConfigError, match="no largest entry"):
        quantize(model, None, data, target=Target(max_drop=0.1))
    with pytest.raises(ConfigError, match="output_index"):
        quantize(model, None, data, target=Target(max_distance=0.1, distance=np.vdot, output_index=1))
    drawn = build("(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    with pytest.raises(UnsupportedError, match="random"):
        quantize(drawn, None, samples(drawn, 20), target=Target(mse=0.1))
    with pytest.raises(UnsupportedError, match="save_dir"):
        ModelQuantizer(PLAIN).quantize_model(model, None, data, save_dir=tmp_path, target=Target(mse=0.1))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = separable_cnn()
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", **samples(model, 24))
    arguments = [
        "quantize",
        str(tmp_path / "model.onnx"),
        str(tmp_path / "out.onnx"),
        "--data",
        str(tmp_path / "data.npz"),
    ]
    assert main([*arguments, "--no-finetuning", "--target", "sqnr_db=20"]) == 0
    assert "sqnr_db" in capsys.readouterr().out
    assert main([*arguments, "--target", "sqnr_db=much"]) == 2
    assert main([*arguments, "--time-limit", "3"]) == 2
    assert "needs --target" in capsys.readouterr().err
