"""finetune(): models that onnxruntime's quantize_static made get better, scales and structure as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from small_models import (
    MODELS,
    Reader,
    Weights,
    build,
    initializers,
    mean_squared_error,
    residual_cnn,
    samples,
    scaled,
    separable_cnn,
)

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)


class OnnxruntimeReader(Reader, CalibrationDataReader):
    """onnxruntime insists on its own base class."""


def quantized_by_onnxruntime(model: onnx.ModelProto, folder: Path, **options: object) -> onnx.ModelProto:
    onnx.save(model, folder / "float.onnx")
    options = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8} | options
    quantize_static(
        folder / "float.onnx",
        folder / "static.onnx",
        OnnxruntimeReader(samples(model, 40)),
        quant_format=QuantFormat.QDQ,
        **options,
    )
    return onnx.load(folder / "static.onnx")


def tuned_and_report(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    config: AdaRoundConfig | None = None,
    *,
    count: int = 120,
) -> tuple[onnx.ModelProto, Report]:
    before = quantized.SerializeToString(), float_model.SerializeToString()
    result = finetune(float_model, quantized, None, Reader(samples(float_model, count)), config or AdaRoundConfig())
    assert (quantized.SerializeToString(), float_model.SerializeToString()) == before
    return result


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    """Names of the integer initializers that changed; anything else may not."""
    assert list(before.graph.node) == list(after.graph.node)
    names = set()
    for a, b in zip(before.graph.initializer, after.graph.initializer, strict=True):
        if a != b:
            assert a.data_type == b.data_type != onnx.TensorProto.FLOAT
            assert (a.name, a.dims) == (b.name, b.dims)
            assert not a.name.endswith("zero_point")
            names.add(a.name)
    return names


@pytest.mark.parametrize("config", [AdaRoundConfig(), AdaQuantConfig()], ids=["adaround", "adaquant"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize("name", MODELS)
def test_what_onnxruntime_quantized(name: str, per_channel: bool, config: AdaRoundConfig, tmp_path: Path) -> None:
    model = MODELS[name]()
    static = quantized_by_onnxruntime(model, tmp_path, per_channel=per_channel)
    tuned, report = tuned_and_report(model, static, config)
    assert not report.skipped, report.skipped
    layers = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")]
    assert [layer.name for layer in report.layers] == layers
    assert changed(static, tuned)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, static, unseen)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_type": QuantType.QInt8, "extra_options": {"ActivationSymmetric": True}},
        {"weight_type": QuantType.QUInt8},
        {"weight_type": QuantType.QInt4},
        {"weight_type": QuantType.QInt4, "per_channel": True},
        {"weight_type": QuantType.QUInt4, "per_channel": True},
        {"activation_type": QuantType.QUInt16},
        {"activation_type": QuantType.QInt16, "weight_type": QuantType.QInt4, "per_channel": True},
        {"extra_options": {"DedicatedQDQPair": True}},
        {"extra_options": {"AddQDQPairToWeight": True}},
        {"op_types_to_quantize": ["Conv"]},
    ],
    ids=[
        "int8 activations",
        "uint8 weights",
        "int4 weights",
        "int4 weights per channel",
        "uint4 weights per channel",
        "uint16 activations",
        "int16 activations, int4 weights",
        "a Q/DQ pair for each reader",
        "float weights before Q",
        "Conv only",
    ],
)
def test_other_ways_to_quantize(options: dict[str, object], tmp_path: Path) -> None:
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path, **options)
    tuned, report = tuned_and_report(model, static)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.7 * mean_squared_error(model, static, unseen)
    skipped = {layer.node: layer.reason for layer in report.skipped}
    expected = {"classes": "its weight is not quantized"} if "op_types_to_quantize" in options else {}
    assert skipped == expected


def test_batch_normalization_that_was_not_folded(tmp_path: Path) -> None:
    model = residual_cnn(folded=False)
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 3
    static = quantized_by_onnxruntime(model, tmp_path)
    assert sum(node.op_type == "BatchNormalization" for node in static.graph.node) == 3
    tuned, report = tuned_and_report(model, static)
    assert not report.skipped, report.skipped
    assert [layer.name for layer in report.layers] == ["stem", "bn1", "conv2", "bn2", "conv3", "bn3", "product"]
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, static, unseen)


def test_batch_normalization_that_was_folded_before(tmp_path: Path) -> None:
    model = residual_cnn(folded=False)
    onnx.save(model, tmp_path / "raw.onnx")
    quant_pre_process(tmp_path / "raw.onnx", tmp_path / "folded.onnx", skip_symbolic_shape=True)
    folded = onnx.load(tmp_path / "folded.onnx")
    assert not any(node.op_type == "BatchNormalization" for node in folded.graph.node)
    static = quantized_by_onnxruntime(folded, tmp_path)
    unseen = samples(model, 64, seed=1)
    plain = mean_squared_error(model, static, unseen)
    for float_model in (model, folded):
        tuned, report = tuned_and_report(float_model, static)
        assert not report.skipped, report.skipped
        assert len(report.layers) == 4
        assert mean_squared_error(model, tuned, unseen) < plain


def test_gemm_factors_stay(tmp_path: Path) -> None:
    """alpha and beta are the quantized model's; the error is that of the layer's output, factors included."""
    w = Weights(0)
    gains = w.gains(24)
    model = build(
        "(float[N,12] x) => (float[N,24] y) { [gemm] y = Gemm<alpha=0.25, beta=2.0, transB=1>(x, w, b) }",
        w=4 * scaled(w.conv(24, 12), gains),
        b=w.bias(24) * gains,
    )
    static = quantized_by_onnxruntime(model, tmp_path)
    tuned, report = tuned_and_report(model, static, count=200)
    (layer,) = report.layers
    assert layer.accepted
    gemm = next(node for node in tuned.graph.node if node.op_type == "Gemm")
    assert {a.name: a.f for a in gemm.attribute if a.name == "alpha"} == {"alpha": 0.25}
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, static, unseen)


def test_a_transposed_input(tmp_path: Path) -> None:
    w = Weights(0)
    model = build(
        "(float[12,N] x) => (float[N,24] y) { [gemm] y = Gemm<transA=1>(x, w, b) }",
        w=w.conv(12, 24),
        b=w.bias(24),
    )
    data = {"x": np.random.default_rng(0).standard_normal((12, 64)).astype(np.float32)}
    onnx.save(model, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "q.onnx", OnnxruntimeReader(data, batch=12))
    static = onnx.load(tmp_path / "q.onnx")
    tuned, report = finetune(model, static, None, Reader(data, batch=12), AdaRoundConfig())
    (layer,) = report.layers
    assert layer.accepted
    assert mean_squared_error(model, tuned, data) < mean_squared_error(model, static, data)


def test_a_layer_whose_data_does_not_fit_is_reported(tmp_path: Path) -> None:
    """The two graphs disagree on the shape of a tensor between two pools."""
    w = Weights(0)
    text = """(float[N,3,8,8] x) => (float[N,4,1,1] y) {{
        [first] t1 = Conv<pads=[1,1,1,1]>(x, first_w, first_b)
        [pool] t2 = MaxPool<kernel_shape=[2,2], strides=[{stride},{stride}]>(t1)
        [second] t3 = Conv<pads=[1,1,1,1]>(t2, second_w, second_b)
        [mean] t4 = GlobalAveragePool(t3)
        [third] y = Conv(t4, third_w, third_b)
    }}"""
    weights = {
        "first_w": w.conv(4, 3, 3, 3), "first_b": w.bias(4),
        "second_w": w.conv(4, 4, 3, 3), "second_b": w.bias(4),
        "third_w": w.conv(4, 4, 1, 1), "third_b": w.bias(4),
    }  # fmt: skip
    other = build(text.format(stride=1), **weights)
    static = quantized_by_onnxruntime(build(text.format(stride=2), **weights), tmp_path)
    tuned, report = tuned_and_report(other, static, count=40)
    first, second, third = report.layers
    assert first.accepted
    assert third.accepted
    assert not second.accepted
    assert "its data does not fit" in second.reason
    assert "(input (16, 4, 4, 4), float output (16, 4, 7, 7))" in second.reason
    assert "second_w_quantized" not in changed(static, tuned)
    assert "its data does not fit" in report.full(300)


def test_a_float_model_with_other_outputs(tmp_path: Path) -> None:
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path)
    del model.graph.node[-1], model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("t12", onnx.TensorProto.FLOAT, ["N", 16]))
    with pytest.raises(ModelError, match=r"not one model: the float model's outputs .*\(1, 16\).*\(1, 10\)"):
        tuned_and_report(model, static, count=40)


def test_a_quantized_model_that_onnxruntime_refuses(tmp_path: Path) -> None:
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path)
    next(node for node in static.graph.node if node.name == "flat").op_type = "Flatten7"
    with pytest.raises(ModelError, match=r"the quantized model: it is not valid ONNX: .*Flatten7"):
        tuned_and_report(model, static, count=12)


def test_a_layer_that_is_skipped_is_named(tmp_path: Path) -> None:
    """Another weight, a shared weight: left alone; the rest is tuned."""
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    for tensor in other.graph.initializer:
        if tensor.name == "pw1_w":
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), "pw1_w"))
    tuned, report = tuned_and_report(other, static)
    assert {layer.node: layer.reason for layer in report.skipped} == {
        "pw1": "its weight is not near that of the float model: was another float model quantized?"
    }
    assert len(report.layers) == 5
    np.testing.assert_array_equal(initializers(tuned)["pw1_w_quantized"], initializers(static)["pw1_w_quantized"])
    assert "pw1 (Conv)" in report.full(300)


@pytest.mark.parametrize("written", [False, True], ids=["returned", "written"])
def test_where_the_result_goes(written: bool, tmp_path: Path) -> None:
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path)
    returned, _ = tuned_and_report(model, static, count=40)
    if not written:
        return
    before = (tmp_path / "static.onnx").read_bytes()
    report = finetune(
        tmp_path / "float.onnx",
        str(tmp_path / "static.onnx"),
        tmp_path / "tuned.onnx",
        Reader(samples(model, 40)),
        AdaRoundConfig(),
    )
    assert isinstance(report, Report)
    assert onnx.load(tmp_path / "tuned.onnx") == returned
    assert (tmp_path / "static.onnx").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "static.onnx", "tuned.onnx"]


def test_a_whole_configuration_is_taken_too(tmp_path: Path) -> None:
    model = separable_cnn()
    static = quantized_by_onnxruntime(model, tmp_path)
    config = QConfig(
        QLayerConfig(UInt8Spec(), weight=Int8Spec()),
        algo_config=[AdaRoundConfig()],
        extra_options={"NumThreads": 1},
    )
    alone, _ = tuned_and_report(model, static, count=40)
    assert tuned_and_report(model, static, config, count=40)[0].graph == alone.graph


def test_own_models_can_be_finetuned_later() -> None:
    """What quantize_model does in one go, in two steps."""
    model = separable_cnn()
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    plain = ModelQuantizer(QConfig(layer)).quantize_model(model, None, Reader(samples(model, 40)))
    at_once = ModelQuantizer(QConfig(layer, algo_config=[AdaRoundConfig()])).quantize_model(
        model, None, Reader(samples(model, 40))
    )
    assert tuned_and_report(model, plain, count=40)[0].graph == at_once.graph
