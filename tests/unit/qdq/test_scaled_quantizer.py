"""Scales that are powers of two or int16 mantissas, for every tensor that a model quantizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnxruntime.quantization import QuantType
from reference.fake_quant import affine_from_range, rounded_up
from small_models import MODELS, build, initializers, run, samples

from quark.onnx.config.spec import ScaleType
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.weight_params import WeightParams

INT8, UINT8 = QuantType.QInt8, QuantType.QUInt8
OPTIONS = {
    "uint8": QdqOptions(),
    "int8 symmetric": QdqOptions(activation_type=INT8, activation_symmetric=True),
    "int8 asymmetric": QdqOptions(activation_type=INT8, weight_type=UINT8, weight_symmetric=False),
    "per channel": QdqOptions(per_channel=True),
}
GRIDS = {(INT8, True): (-127, 127), (INT8, False): (-128, 127), (UINT8, True): (0, 255), (UINT8, False): (0, 255)}


def with_scales(options: QdqOptions, activations: ScaleType, weights: ScaleType) -> QdqOptions:
    return replace(options, activation_scales=activations, weight_scales=weights)


def ranges_of(model: onnx.ModelProto, options: QdqOptions) -> dict[str, tuple[float, float]]:
    rng = np.random.default_rng(0)
    return {name: (-rng.uniform(0.5, 9), rng.uniform(0.5, 9)) for name in calibration_tensors(model, options)}


def quantizers(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, int | None]]:
    """Scale, zero point and axis by the tensor that is quantized, int32 biases left out."""
    constants = initializers(model)
    found = {}
    for node in model.graph.node:
        is_constant = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if node.op_type == "QuantizeLinear" or (is_constant and constants[node.input[0]].dtype != np.int32):
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            name = node.input[0].removesuffix("_QuantizeLinear_Input" if not is_constant else "_quantized")
            found[name] = (constants[node.input[1]], constants[node.input[2]], axis)
    return found


def lanes(values: np.ndarray, axis: int | None) -> np.ndarray:
    return values.reshape(1, -1) if axis is None else np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


@pytest.mark.parametrize(
    ("activations", "weights"),
    [
        (ScaleType.PowerOf2, ScaleType.PowerOf2),
        (ScaleType.Int16, ScaleType.Int16),
        (ScaleType.PowerOf2, ScaleType.Float32),
        (ScaleType.Float32, ScaleType.PowerOf2),
    ],
)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_every_scale_is_the_next_larger_one_of_its_kind(
    name: str, options: QdqOptions, activations: ScaleType, weights: ScaleType
):
    model = prepare(MODELS[name]())
    ranges, options = ranges_of(model, options), with_scales(options, activations, weights)
    result = insert_qdq(model, ranges, {}, options)
    onnx.checker.check_model(result, full_check=True)
    constants = initializers(model)
    layer_weights = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")}
    checked = 0
    for tensor, (scale, zero_point, axis) in quantizers(result).items():
        if tensor in ranges:
            kind, quantizer, values = activations, (options.activation_type, options.activation_symmetric), None
            limits = np.array([ranges[tensor]], np.float32)
        elif tensor in layer_weights:
            kind, quantizer, values = weights, (options.weight_type, options.weight_symmetric), constants[tensor]
            quantizer = (options.weight_type, options.weight_symmetric or axis is not None)
            limits = lanes(values, axis)
        else:
            continue
        grid = GRIDS[quantizer]
        for low, high, s, z in zip(
            limits.min(axis=1), limits.max(axis=1), scale.reshape(-1), zero_point.reshape(-1), strict=True
        ):
            expected = affine_from_range(float(low), float(high), *grid, symmetric=quantizer[1], scale_type=kind.name)
            assert (s, z) == expected
            checked += 1
    assert checked >= 4
    for scale, _, _ in quantizers(result).values():
        if activations is weights:
            assert all(s == rounded_up(float(s), weights.name) for s in scale.reshape(-1))
    arrays = samples(model, 3)
    for plain, optimised in zip(run(result, arrays), run(result, arrays, optimise=True), strict=True):
        assert np.isfinite(plain).all()
        assert np.isfinite(optimised).all()


def test_a_constant_of_an_elementwise_operator_has_the_scale_of_activations():
    model = prepare(build("(float[N,4] x) => (float[N,4] y) { y = Mul(x, c) }", c=np.float32([0.3, -1.1, 0.7, 0.2])))
    options = with_scales(OPTIONS["uint8"], ScaleType.PowerOf2, ScaleType.Float32)
    result = quantizers(insert_qdq(model, ranges_of(model, options), {}, options))
    scale, zero_point, _ = result["c"]
    assert (scale, zero_point) == affine_from_range(-1.1, 0.7, 0, 255, symmetric=False, scale_type="PowerOf2")


@pytest.mark.parametrize(
    ("options", "scale", "zero_point"),
    [("uint8", 2**-8, 0), ("int8 symmetric", 2**-7, 0), ("int8 asymmetric", 2**-8, -128)],
)
def test_softmax_uses_all_integers(options: str, scale: float, zero_point: int):
    """Between 0 and 1 less a step: a scale that reaches 1 would leave half of the integers unused."""
    model = prepare(build("(float[N,4] x) => (float[N,4] y) { y = Softmax(x) }"))
    chosen = with_scales(OPTIONS[options], ScaleType.PowerOf2, ScaleType.PowerOf2)
    found = quantizers(insert_qdq(model, ranges_of(model, chosen), {}, chosen))["y"]
    assert (found[0], found[1]) == (scale, zero_point)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_weight_scale_that_grows_for_its_bias_stays_of_its_kind(per_channel: bool):
    text = "(float[N,8] x) => (float[N,8] y) { y = Gemm(x, w, c) }"
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    model = prepare(build(text, w=weight, c=np.full(8, 3e6)))
    options = replace(OPTIONS["uint8"], weight_scales=ScaleType.PowerOf2, per_channel=per_channel)
    shape = (8,) if per_channel else (1,)
    params = WeightParams(np.full(shape, 2.0**-20, np.float32), np.zeros(shape, np.int8), 1 if per_channel else None)
    result = insert_qdq(model, {"x": (-1, 1), "y": (0, 3e6)}, {"w": params}, options)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    scale = constants["w_scale"]
    assert (scale > 2.0**-20).all()
    assert (np.log2(scale) % 1 == 0).all()
    np.testing.assert_allclose(constants["c_quantized"] * constants["c_quantized_scale"].astype(float), 3e6, rtol=1e-6)
    np.testing.assert_array_equal(
        constants["c_quantized_scale"].reshape(-1), (constants["x_scale"] * scale).reshape(-1)
    )


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("scales", [ScaleType.Float32, ScaleType.PowerOf2])
def test_a_bias_behind_a_tensor_that_is_always_zero(scales: ScaleType, options: QdqOptions) -> None:
    """The output is the bias: it is not rounded to multiples of the weight's scale, which is 0.03 here."""
    bias = np.array([0.01, -0.02, 0.005, 0.003])
    model = prepare(
        build(
            "(float[N,6] x) => (float[N,4] y) { s = Sub(x, far) r = Relu(s) y = Gemm(r, w, b) }",
            far=100.0, w=np.linspace(-4, 4, 24).reshape(6, 4), b=bias,
        )
    )  # fmt: skip
    options = with_scales(options, scales, scales)
    ranges = {name: (0.0, 0.0) if name == "r" else (-0.02, 0.02) for name in calibration_tensors(model, options)}
    result = insert_qdq(model, ranges, {}, options)
    data = samples(model, 4)
    for optimise in (False, True):
        assert np.abs(run(result, data, optimise=optimise)[0] - bias).max() < 1e-3
