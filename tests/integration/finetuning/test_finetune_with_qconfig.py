"""finetune() with a QConfig checks, respects and reports what ModelQuantizer does; and doubts a wrong float model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Reader, build, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    BiasCorrectionConfig,
    ConfigError,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    SmoothQuantConfig,
    UInt8Spec,
    UnsupportedError,
    finetune,
)

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())


def reader(model: onnx.ModelProto) -> Reader:
    return Reader(samples(model, 40))


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    return ModelQuantizer(QConfig(LAYER)).quantize_model(model, None, reader(model))


def tuned(model: onnx.ModelProto, given: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Report]:
    config = QConfig(LAYER, **{"algo_config": [AdaRoundConfig()], **options})
    return finetune(model, given, None, reader(model), config)


def initializers(model: onnx.ModelProto, layer: str) -> dict[str, bytes]:
    return {t.name: t.raw_data for t in model.graph.initializer if t.name.startswith(layer + "_")}


@pytest.mark.parametrize("algorithms", [[AdaRoundConfig()], [BiasCorrectionConfig(), AdaRoundConfig()]])
def test_excluded_layers_stay_as_they_are(algorithms: list[object]) -> None:
    model = separable_cnn()
    given = quantized(model)
    result, report = tuned(model, given, exclude=["pw1"], algo_config=algorithms)
    assert {s.node: s.reason for s in report.skipped} == {"pw1": "it is excluded by the QConfig"}
    assert "pw1" not in {layer.name for layer in (*report.layers, *report.corrections)}
    assert initializers(result, "pw1") == initializers(given, "pw1")
    assert initializers(result, "pw2") != initializers(given, "pw2")


def test_layers_that_share_a_weight_with_an_excluded_one_stay_too() -> None:
    model = build(
        """(float[N,8] x) => (float[N,8] y) {
            [one] a = MatMul(x, w)  b = Relu(a)  [two] c = MatMul(b, w)  d = Relu(c)  [own] y = MatMul(d, v)
        }""",
        w=np.random.default_rng(0).standard_normal((8, 8)), v=np.random.default_rng(1).standard_normal((8, 8)),
    )  # fmt: skip
    _, report = tuned(model, quantized(model), exclude=["one"])
    reasons = {s.node: s.reason for s in report.skipped}
    assert reasons["one"] == "it is excluded by the QConfig"
    assert "'one' is excluded" in reasons["two"]
    assert [layer.name for layer in report.layers] == ["own"]


def test_a_node_that_is_not_there() -> None:
    model = separable_cnn()
    with pytest.raises(ConfigError, match="exclude"):
        tuned(model, quantized(model), exclude=["absent"])


def test_algorithms_that_are_not_supported() -> None:
    model = separable_cnn()
    with pytest.raises(UnsupportedError, match="SmoothQuantConfig"):
        tuned(model, quantized(model), algo_config=[SmoothQuantConfig(), AdaRoundConfig()])


def test_extra_options_without_effect_are_reported() -> None:
    model = separable_cnn()
    _, report = tuned(model, quantized(model), TmpDir="x", QuantizeBias=True, NumThreads=1)
    assert [line.split("]")[0] for line in report.ignored] == ["extra_options['TmpDir'", "extra_options['QuantizeBias'"]
    assert "finetune() keeps the quantized model's structure" in report.ignored[1]


def test_a_configuration_without_such_things_changes_nothing() -> None:
    model = separable_cnn()
    given = quantized(model)
    plain, _ = finetune(model, given, None, reader(model), AdaRoundConfig())
    assert tuned(model, given)[0].graph == plain.graph


def test_another_float_model_is_doubted() -> None:
    one, other = separable_cnn(seed=0), separable_cnn(seed=1)
    given = quantized(one)
    with pytest.raises(ModelError, match=r"is this the model that the quantized one was made from\?"):
        finetune(other, given, None, reader(one), AdaRoundConfig())


def test_a_float_model_that_is_another_in_most_layers_is_doubted_in_the_report() -> None:
    one, other = separable_cnn(seed=0), separable_cnn(seed=1)
    names = [t.name for t in one.graph.initializer if t.name.startswith("stem")]
    kept = [t for t in other.graph.initializer if t.name not in names]
    other.graph.ClearField("initializer")
    other.graph.initializer.extend([*kept, *(t for t in one.graph.initializer if t.name in names)])
    _, report = finetune(other, quantized(one), None, reader(one), AdaRoundConfig())
    (doubt,) = [line for line in report.warnings if "is this the model that the quantized one was made from?" in line]
    assert doubt.startswith("the weights of 5 of 6 layers")


def test_the_right_float_model_is_not_doubted() -> None:
    model = separable_cnn()
    _, report = finetune(model, quantized(model), None, reader(model), AdaRoundConfig())
    assert not [line for line in report.warnings if "made from" in line]
