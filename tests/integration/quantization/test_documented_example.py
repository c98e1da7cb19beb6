"""The documented way to use the package: what it promises, with the arguments that users give it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import small_models
from small_models import MODELS, Reader, initializers, mean_squared_error, run, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    UInt8Spec,
)

pytestmark = pytest.mark.sets_apart

LAYERS = {
    "default": QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()),
    "weights by minimum and maximum": QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax)),
    "symmetric activations": QLayerConfig(Int8Spec(), weight=Int8Spec()),
    "per channel": QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=QuantGranularity.Channel)),
    "unsigned weights": QLayerConfig(UInt8Spec(calibration_method=CalibMethod.MinMax), weight=UInt8Spec()),
}
INTEGERS = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32}


def quantize(
    model: onnx.ModelProto,
    layer: QLayerConfig,
    algorithm: AlgoConfig | None = None,
    *,
    count: int = 40,
    **options: object,
) -> tuple[onnx.ModelProto, Report]:
    config = QConfig(layer, algo_config=[] if algorithm is None else [algorithm], **options)
    quantizer = ModelQuantizer(config)
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantized, quantizer.report


def integers(model: onnx.ModelProto, kind: int) -> dict[str, bytes]:
    return {t.name: t.raw_data for t in model.graph.initializer if t.data_type == kind}


def assert_only_integers_differ(plain: onnx.ModelProto, tuned: onnx.ModelProto) -> set[str]:
    """Names of the integer weights and biases that differ; all else is equal."""
    for a, b in zip(plain.graph.node, tuned.graph.node, strict=True):
        assert a == b
    differing = set()
    dequantized = {node.input[0]: node for node in plain.graph.node if node.op_type == "DequantizeLinear"}
    for a, b in zip(plain.graph.initializer, tuned.graph.initializer, strict=True):
        assert (a.name, a.data_type, a.dims) == (b.name, b.data_type, b.dims)
        if a != b:
            assert a.data_type in INTEGERS
            assert a.name in dequantized, "a zero point, or another constant, is no weight or bias"
            differing.add(a.name)
    rest = [onnx.ModelProto(), onnx.ModelProto()]
    for copy, model in zip(rest, (plain, tuned), strict=True):
        copy.CopyFrom(model)
        del copy.graph.initializer[:]
        del copy.metadata_props[:]  # each says how it was made
    assert rest[0] == rest[1]
    return differing


def test_the_documented_example(tmp_path: Path) -> None:
    float_model = separable_cnn()
    input_model_path, quantized_model_path = str(tmp_path / "float.onnx"), str(tmp_path / "quantized.onnx")
    onnx.save(float_model, input_model_path)
    calib_data_reader = Reader(samples(float_model, 40))

    # From here on as documented.
    from quark.onnx import ModelQuantizer
    from quark.onnx.config import QConfig
    from quark.onnx.config.algorithm import AdaRoundConfig
    from quark.onnx.config.spec import Int8Spec, QLayerConfig, UInt8Spec

    quant_config = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
    adaround_config = AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)
    config = QConfig(global_config=quant_config, algo_config=[adaround_config])

    quantizer = ModelQuantizer(config)
    returned = quantizer.quantize_model(input_model_path, quantized_model_path, calib_data_reader)
    # To here.

    assert returned is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "quantized.onnx"]
    unseen = samples(float_model, 32, seed=1)
    want, have = (run(path, unseen)[0] for path in (input_model_path, quantized_model_path))
    assert np.var(have - want) < 0.02 * np.var(want)
    kinds = {onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32}
    quantized = onnx.load(quantized_model_path)
    assert {t.data_type for t in quantized.graph.initializer} >= kinds
    assert {n.op_type for n in quantized.graph.node} >= {"QuantizeLinear", "DequantizeLinear", "Conv", "Gemm"}


def test_the_newer_spelling_gives_the_same_model() -> None:
    model = separable_cnn()
    older, _ = quantize(model, QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()), AdaRoundConfig())
    newer, _ = quantize(model, QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec()), AdaRoundConfig())
    assert older.graph == newer.graph


def test_a_path_and_a_proto_give_the_same_model(tmp_path: Path) -> None:
    model = separable_cnn()
    onnx.save(model, tmp_path / "float.onnx")
    config = QConfig(LAYERS["default"], algo_config=[AdaRoundConfig()])
    returned = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40)))
    written = ModelQuantizer(config).quantize_model(
        tmp_path / "float.onnx", tmp_path / "q.onnx", Reader(samples(model, 40))
    )
    assert written is None
    assert onnx.load(tmp_path / "q.onnx") == returned


@pytest.mark.parametrize("algorithm", [AdaRoundConfig(), AdaQuantConfig()], ids=["adaround", "adaquant"])
@pytest.mark.parametrize("name", MODELS)
def test_finetuned_beats_plain_on_data_that_it_has_not_seen(name: str, algorithm: AlgoConfig) -> None:
    model = MODELS[name]()
    unseen = samples(model, 64, seed=1)
    plain, _ = quantize(model, LAYERS["default"], count=120)
    tuned, report = quantize(model, LAYERS["default"], algorithm, count=120)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)
    assert any(layer.accepted for layer in report.layers)


@pytest.mark.parametrize(("algorithm", "share"), [(AdaRoundConfig(), 0.1), (AdaQuantConfig(), 0.1)])
def test_finetune_repairs_scales_that_one_channel_sets(algorithm: AlgoConfig, share: float) -> None:
    model = separable_cnn()
    unseen = samples(model, 64, seed=1)
    plain, _ = quantize(model, LAYERS["weights by minimum and maximum"])
    tuned, _ = quantize(model, LAYERS["weights by minimum and maximum"], algorithm)
    assert mean_squared_error(model, tuned, unseen) < share * mean_squared_error(model, plain, unseen)


def test_the_default_weight_scales_beat_minimum_and_maximum() -> None:
    model = separable_cnn()
    unseen = samples(model, 64, seed=1)
    chosen, _ = quantize(model, LAYERS["default"])
    min_max, _ = quantize(model, LAYERS["weights by minimum and maximum"])
    assert mean_squared_error(model, chosen, unseen) < 0.2 * mean_squared_error(model, min_max, unseen)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("name", MODELS)
def test_finetune_changes_integer_weights_and_biases_only(name: str, layer: QLayerConfig) -> None:
    model = MODELS[name]()
    plain, _ = quantize(model, layer)
    tuned, report = quantize(model, layer, AdaQuantConfig(keep_worse=True))  # judged by five samples
    differing = assert_only_integers_differ(plain, tuned)
    assert differing
    accepted = sum(entry.accepted for entry in report.layers)
    assert accepted <= len(differing) <= 2 * accepted
    onnx.checker.check_model(tuned, full_check=True)


def weight_grid(tuned: onnx.ModelProto, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers, scale and zero point of a weight; the last two shaped to broadcast over the integers."""
    values = initializers(tuned)
    q, scale, zero_point = (values[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
    node = next(n for n in tuned.graph.node if n.input[0] == f"{name}_quantized")
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    shape = [-1 if i == axis and scale.size > 1 else 1 for i in range(q.ndim)]
    return q.astype(np.int64), scale.reshape(shape), zero_point.reshape(shape).astype(np.int64)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_adaround_rounds_every_weight_down_or_up(layer: QLayerConfig) -> None:
    model = separable_cnn()
    tuned, report = quantize(model, layer, AdaRoundConfig())
    plain, _ = quantize(model, layer)
    assert sum(entry.accepted for entry in report.layers) >= 4
    low, high = (0, 255) if layer.weight == UInt8Spec() else (-127, 127)
    moved = 0
    for name, weight in initializers(model).items():
        if not name.endswith("_w"):
            continue
        q, scale, zero_point = weight_grid(tuned, name)
        down = np.floor(weight / scale).astype(np.int64) + zero_point
        assert np.all((q == np.clip(down, low, high)) | (q == np.clip(down + 1, low, high))), name
        moved += np.count_nonzero(q != weight_grid(plain, name)[0])
    assert moved > 20


def test_adaquant_moves_weights_beyond_down_or_up() -> None:
    model = separable_cnn()
    layer = LAYERS["weights by minimum and maximum"]
    tuned, _ = quantize(model, layer, AdaQuantConfig())
    beyond = 0
    for name, weight in initializers(model).items():
        if name.endswith("_w"):
            q, scale, zero_point = weight_grid(tuned, name)
            down = np.floor(weight / scale).astype(np.int64) + zero_point
            beyond += np.count_nonzero((q < down) | (q > down + 1))
    assert beyond > 0


def test_per_channel_weights_have_one_scale_a_channel() -> None:
    model = MODELS["mlp"]()
    tuned, _ = quantize(model, LAYERS["per channel"], AdaRoundConfig())
    scales = {n: v.size for n, v in initializers(tuned).items() if "_w" in n and n.endswith("_scale")}
    assert sorted(scales.values()) == [5, 16, 24]


def test_symmetric_activations_have_their_zero_point_at_zero() -> None:
    model = separable_cnn()
    tuned, _ = quantize(model, LAYERS["symmetric activations"], AdaRoundConfig())
    values = initializers(tuned)
    zero_points = [values[n.input[2]] for n in tuned.graph.node if n.op_type == "QuantizeLinear"]
    assert len(zero_points) > 6
    assert all(z.dtype == np.int8 and not z.any() for z in zero_points)


def test_biases_stay_when_they_should() -> None:
    model = separable_cnn()
    plain, _ = quantize(model, LAYERS["default"])
    kept, _ = quantize(model, LAYERS["default"], AdaRoundConfig(update_bias=False))
    tuned, _ = quantize(model, LAYERS["default"], AdaRoundConfig())
    assert integers(kept, onnx.TensorProto.INT32) == integers(plain, onnx.TensorProto.INT32)
    assert integers(kept, onnx.TensorProto.INT8) != integers(plain, onnx.TensorProto.INT8)
    assert integers(tuned, onnx.TensorProto.INT32) != integers(plain, onnx.TensorProto.INT32)


def test_only_the_op_types_asked_for_are_tuned() -> None:
    model = separable_cnn()
    plain, _ = quantize(model, LAYERS["default"])
    tuned, report = quantize(model, LAYERS["default"], AdaRoundConfig(target_op_type=["Gemm"]))
    assert assert_only_integers_differ(plain, tuned) == {"classes_w_quantized", "classes_b_quantized"}
    assert [layer.name for layer in report.layers] == ["classes"]


@pytest.mark.parametrize("exclude", [["dw1", "pw1"], ["^.w1$"]], ids=["names", "pattern"])
def test_excluded_nodes_stay_float(exclude: list[str]) -> None:
    model = separable_cnn()
    unseen = samples(model, 64, seed=1)
    tuned, report = quantize(model, LAYERS["default"], AdaRoundConfig(), exclude=exclude)
    plain, _ = quantize(model, LAYERS["default"], exclude=exclude)
    values = initializers(tuned)
    assert values["dw1_w"].dtype == values["pw1_w"].dtype == np.float32
    assert values["pw2_w_quantized"].dtype == np.int8
    assert {layer.node: layer.reason for layer in report.skipped} == {
        "dw1": "its weight is not quantized",
        "pw1": "its weight is not quantized",
    }
    assert [layer.name for layer in report.layers] == ["stem", "dw2", "pw2", "classes"]
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


def test_only_the_op_types_asked_for_are_quantized() -> None:
    model = separable_cnn()
    tuned, report = quantize(model, LAYERS["default"], AdaRoundConfig(), extra_options={"OpTypesToQuantize": ["Conv"]})
    assert "classes_w_quantized" not in initializers(tuned)
    assert {layer.node for layer in report.skipped} == {"classes"}
    assert {layer.op_type for layer in report.layers} == {"Conv"}


def test_the_configuration_is_not_changed() -> None:
    model = separable_cnn()
    algorithm = AdaRoundConfig(data_size=20, target_op_type=["Conv"], num_iterations=10)
    options = {"NumThreads": 1, "Percentile": 99.9}
    config = QConfig(LAYERS["default"], algo_config=[algorithm], exclude=["stem"], extra_options=options)
    before, written = replace(algorithm), config.to_dict()
    first = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40)))
    assert config.to_dict() == written
    assert config.algo_config == (before,)
    assert options == {"NumThreads": 1, "Percentile": 99.9}
    assert ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40))) == first


def test_a_quantizer_can_be_used_again() -> None:
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig(LAYERS["default"], algo_config=[AdaRoundConfig()]))
    first = quantizer.quantize_model(model, None, Reader(samples(model, 40)))
    assert quantizer.quantize_model(model, None, Reader(samples(model, 40))) == first


@pytest.mark.parametrize("name", ["residual unfolded", *MODELS])
def test_the_input_is_not_touched(name: str, tmp_path: Path) -> None:
    model = small_models.residual_cnn(folded=False) if name not in MODELS else MODELS[name]()
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    content, proto = path.read_bytes(), model.SerializeToString()
    config = QConfig(LAYERS["default"], algo_config=[AdaRoundConfig()])
    ModelQuantizer(config).quantize_model(path, tmp_path / "q.onnx", Reader(samples(model, 12)))
    ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 12)))
    assert path.read_bytes() == content
    assert model.SerializeToString() == proto


def test_tensors_beside_the_model(tmp_path: Path) -> None:
    model = separable_cnn()
    config = QConfig(LAYERS["default"], algo_config=[AdaRoundConfig()], use_external_data_format=True)
    ModelQuantizer(config).quantize_model(model, tmp_path / "q.onnx", Reader(samples(model, 40)))
    whole, _ = quantize(model, LAYERS["default"], AdaRoundConfig())
    unseen = samples(model, 8, seed=1)
    np.testing.assert_array_equal(run(str(tmp_path / "q.onnx"), unseen)[0], run(whole, unseen)[0])


def test_an_old_model_with_unnamed_nodes() -> None:
    model = separable_cnn(opset=11)
    for node in model.graph.node:
        node.name = ""
    unseen = samples(model, 64, seed=1)
    plain, _ = quantize(model, LAYERS["default"])
    tuned, report = quantize(model, LAYERS["default"], AdaRoundConfig())
    assert len(report.layers) == 6
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)
