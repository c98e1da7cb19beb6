"""Biases that are far larger than what the inputs add: none of them may ruin the weights, or write a scale of Inf."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import Reader, Weights, build, initializers, run

from quark.onnx import AdaQuantConfig, AdaRoundConfig, ModelQuantizer
from quark.onnx.config import QConfig
from quark.onnx.config.spec import (
    CalibMethod,
    Int8Spec,
    Int16Spec,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    XInt8Spec,
)
from quark.onnx.errors import ModelError
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import qdq_model
from quark.onnx.qdq.qdq_options import QdqOptions

CHANNEL = QuantGranularity.Channel
SPECS = {
    "tensor": QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()),
    "minimum and maximum": QLayerConfig(activation=UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax)),
    "channel": QLayerConfig(activation=UInt8Spec(), weight=Int8Spec(quant_granularity=CHANNEL)),
    "asymmetric": QLayerConfig(activation=UInt8Spec(), weight=UInt8Spec()),
    "XInt8": QLayerConfig(activation=XInt8Spec(), weight=XInt8Spec()),
    "int8 bias": QLayerConfig(activation=UInt8Spec(), weight=Int8Spec(), bias=Int8Spec()),
    "int16": QLayerConfig(activation=Int16Spec(), weight=Int8Spec()),
}
LAYERS = {
    "Conv": ("[N,4,6,6]", "Conv<pads=[1,1,1,1]>", (8, 4, 3, 3)),
    "grouped Conv": ("[N,4,6,6]", "Conv<group=2>", (8, 2, 3, 3)),
    "depthwise Conv": ("[N,8,6,6]", "Conv<group=8>", (8, 1, 3, 3)),
    "ConvTranspose": ("[N,4,6,6]", "ConvTranspose<strides=[2,2]>", (4, 8, 3, 3)),
    "Gemm": ("[N,4]", "Gemm", (4, 8)),
}


def model_of(layer: str, value: float, *, behind: str = "Relu") -> onnx.ModelProto:
    """A layer with the activation behind it, and another layer; one channel of the first has that bias."""
    weights, (shape, op, weight) = Weights(0), LAYERS[layer]
    bias = weights.bias(8)
    bias[5] = value
    then = "Gemm(r, v)" if layer == "Gemm" else "Conv(r, v)"
    last = weights.conv(3, 8) if layer == "Gemm" else weights.conv(3, 8, 1, 1)
    text = f"(float{shape} x) => (float y) {{ [layer] s = {op}(x, w, b) r = {behind}(s) y = {then} }}"
    text = text.replace("float y", "float[N,3] y" if layer == "Gemm" else "float[N,3,h,w0] y")
    return build(text, w=weights.conv(*weight), b=bias, v=last.T if layer == "Gemm" else last)


def data(model: onnx.ModelProto, samples: int = 48) -> dict[str, np.ndarray]:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim][1:]
    return {"x": np.random.default_rng(1).standard_normal((samples, *shape)).astype(np.float32)}


def quantize(model: onnx.ModelProto, config: QLayerConfig, *algorithms: object) -> tuple[onnx.ModelProto, object]:
    quantizer = ModelQuantizer(QConfig(global_config=config, algo_config=list(algorithms)))
    return quantizer.quantize_model(model, None, Reader(data(model))), quantizer.report


def noise(model: onnx.ModelProto, quantized: onnx.ModelProto, *, optimise: bool) -> float:
    (wanted,) = run(model, data(model))
    (given,) = run(quantized, data(model), optimise=optimise)
    return float(np.mean((given - wanted) ** 2) / wanted.var())


def scales(model: onnx.ModelProto) -> np.ndarray:
    constants = initializers(model)
    names = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    return np.concatenate([constants[name].reshape(-1) for name in names])


@pytest.mark.parametrize(
    ("layer", "spec", "value"),
    [*itertools.product(LAYERS, SPECS, [-1e9]), *itertools.product(["Conv"], ["tensor"], [-1e6, -3e38, -np.inf])],
)
def test_a_channel_that_is_switched_off_costs_the_others_nothing(layer: str, spec: str, value: float) -> None:
    quantized, report = quantize(model_of(layer, value), SPECS[spec])
    usual = quantize(model_of(layer, -40), SPECS[spec])[0]  # off too, and no larger than other values
    bound = 1.5 * noise(model_of(layer, -40), usual, optimise=False) + 1e-4
    assert noise(model_of(layer, value), quantized, optimise=False) < bound
    assert noise(model_of(layer, value), quantized, optimise=True) < bound
    assert np.isfinite(scales(quantized)).all()
    assert (scales(quantized) > 0).all()
    assert any("more than the inputs can make up for" in line and "'b'" in line for line in report.warnings)


@pytest.mark.parametrize("algorithm", [AdaRoundConfig(), AdaQuantConfig(), AdaRoundConfig(solver="gradient")])
@pytest.mark.parametrize("value", [-1e9, -np.inf])
def test_such_a_layer_is_tuned(value: float, algorithm: object) -> None:
    model = model_of("Conv", value)
    plain, _ = quantize(model, SPECS["tensor"])
    tuned, report = quantize(model, SPECS["tensor"], algorithm)
    assert noise(model, tuned, optimise=False) < 1.1 * noise(model, plain, optimise=False)
    assert next(layer for layer in report.layers if layer.name == "layer").rows[0] > 0


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("value", [-3e7, 2e9])
def test_a_bias_that_would_cost_the_weights_stays_in_float(value: float, per_channel: bool) -> None:
    """The layer's output is so fine that it shows what the weights lose."""
    model = prepare(model_of("Gemm", value))
    options = QdqOptions(per_channel=per_channel, excluded_nodes=frozenset(node.name for node in model.graph.node[1:]))
    made = qdq_model(model, {"x": (-3, 3), "s": (-1, 1)}, {}, options)
    constants = initializers(made.model)
    np.testing.assert_array_equal(constants["b"], initializers(model)["b"])
    assert constants["w_scale"].max() == np.float32(np.abs(initializers(model)["w"]).max() / 127)
    assert "bias 'b' of node 'layer' stays in float" in made.notes[0]


@pytest.mark.parametrize("optimise", [False, True])
@pytest.mark.parametrize("part", [0.9, 0.985, 1.05])
@pytest.mark.parametrize("op", ["Conv", "Gemm"])
def test_a_bias_near_the_end_of_int32_leaves_room_for_the_products(op: str, part: float, optimise: bool) -> None:
    """Integer kernels would wrap around: the outputs became 0."""
    inputs, step = 2048, 1e-6 / 127 / 255
    weight, bias = np.full((4, inputs), 1e-6), np.full(4, part * 2**31 * step)
    if op == "Conv":
        text = "(float[N,2048,2,2] x) => (float[N,4,2,2] y) { h = Conv(x, w, b) y = Relu(h) }"
        model = build(text, w=weight.reshape(4, inputs, 1, 1), b=bias)
    else:
        model = build(
            "(float[N,2048] x) => (float[N,4] y) { h = Gemm<transB=1>(x, w, b) y = Relu(h) }", w=weight, b=bias
        )
    shape = (6, inputs, 2, 2) if op == "Conv" else (6, inputs)
    arrays = {"x": np.random.default_rng(0).random(shape).astype(np.float32)}
    quantizer = ModelQuantizer(QConfig(global_config=SPECS["minimum and maximum"]))
    quantized = quantizer.quantize_model(model, None, Reader(arrays))
    (largest,) = (
        np.abs(numpy_helper.to_array(tensor).astype(np.int64)).max()
        for tensor in quantized.graph.initializer
        if tensor.name == "b_quantized"
    )
    assert largest <= 2**31 - 1 - inputs * 255 * 127
    np.testing.assert_allclose(run(quantized, arrays, optimise=optimise)[0], run(model, arrays)[0], rtol=0.01)


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("w", np.nan, r"the weight 'w' of Conv 'layer' holds NaN \(1 of 288 values\)"),
        ("w", np.inf, r"the weight 'w' of Conv 'layer' holds Inf"),
        ("b", np.nan, r"the bias 'b' of Conv 'layer' holds NaN \(1 of 8 values\)"),
    ],
)
def test_a_weight_that_is_no_number_is_named(tensor: str, value: float, message: str) -> None:
    model = model_of("Conv", 0.0)
    for initializer in model.graph.initializer:
        if initializer.name == tensor:
            values = numpy_helper.to_array(initializer).copy()
            values.reshape(-1)[1] = value
            initializer.CopyFrom(numpy_helper.from_array(values, tensor))
    with pytest.raises(ModelError, match=message):
        quantize(model, SPECS["tensor"])


def test_in_16_bits_a_large_bias_has_a_scale_of_its_own() -> None:
    """onnxruntime's default optimisation would quantize a float bias, and wrap around."""
    rng = np.random.default_rng(0)
    text = "(float[N,4] x) => (float[N,8] y) { [layer] s = Gemm(x, w, b) y = Mul(s, tiny) }"
    model = build(text, w=1e-3 * rng.standard_normal((4, 8)), b=np.full(8, -3.0), tiny=np.float32([0.5]))
    arrays = {"x": (1e-2 * rng.standard_normal((48, 4))).astype(np.float32)}
    layer = QLayerConfig(activation=Int16Spec(), weight=Int16Spec(calibration_method=CalibMethod.MinMax))
    quantized = ModelQuantizer(QConfig(global_config=layer)).quantize_model(model, None, Reader(arrays))
    (wanted,) = run(model, arrays)
    for optimise in (False, True):
        np.testing.assert_allclose(run(quantized, arrays, optimise=optimise)[0], wanted, rtol=1e-3)
    (weight,) = (values for values in initializers(quantized).values() if values.dtype == np.int16 and values.ndim == 2)
    assert len(np.unique(weight)) > 25
