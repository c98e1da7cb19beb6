"""CalibMethod.MinMSE and Percentile of weights, against the weights themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from reference.fake_quant import affine_from_range, fake_quant
from reference.value_range import histogram_percentile
from small_models import MODELS, build, initializers

from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.calibration.weight_range import WeightRange, weight_scales
from quark.onnx.config.spec import ScaleType
from quark.onnx.layers.weight_layers import weight_layers
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.weight_params import WeightParams

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FACTORS = [2.0 ** (-i / 4) for i in range(25)]


def grid_of(*, symmetric: bool, per_channel: bool, scales: ScaleType = ScaleType.Float32) -> WeightGrid:
    low, high = (-127, 127) if symmetric else (0, 255)
    return WeightGrid(low, high, symmetric, per_channel, scales=scales)


def chosen(
    model: onnx.ModelProto, grid: WeightGrid, percentile: float | None = None, threads: int = 1
) -> dict[str, WeightParams]:
    layers = weight_layers(model)
    ranges = dict.fromkeys((layer.weight for layer in layers), WeightRange(grid, percentile))
    return weight_scales(model, layers, ranges, threads=threads)


def channels(weight: np.ndarray, axis: int | None) -> np.ndarray:
    return weight.reshape(1, -1) if axis is None else np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


@pytest.mark.parametrize("scales", ScaleType)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_min_mse_has_the_least_squared_error(name: str, symmetric: bool, per_channel: bool, scales: ScaleType):
    model = prepare(MODELS[name]())
    grid = grid_of(symmetric=symmetric, per_channel=per_channel, scales=scales)
    found, weights = chosen(model, grid), initializers(model)
    assert set(found) == {layer.weight for layer in weight_layers(model) if layer.op_type in LINEAR}
    for weight, params in found.items():
        rows = channels(weights[weight], params.axis)
        assert params.scale.shape == params.zero_point.shape == (len(rows),)
        for row, scale, zero_point in zip(rows, params.scale, params.zero_point, strict=True):

            def error(s: float, z: int, row: np.ndarray = row) -> float:
                return float(np.square(fake_quant(row, s, z, grid.qmin, grid.qmax).astype(float) - row).sum())

            def candidate(f: float, row: np.ndarray = row) -> tuple[float, int]:
                low, high = float(row.min()) * f, float(row.max()) * f
                return affine_from_range(
                    low, high, grid.qmin, grid.qmax, symmetric=grid.symmetric, scale_type=scales.name
                )

            least = min(error(*candidate(f)) for f in FACTORS)
            assert error(float(scale), int(zero_point)) <= least * (1 + 1e-5)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("percentile", [50.0, 90.0, 100.0])
def test_percentile_is_that_of_absolute_values(percentile: float, symmetric: bool, per_channel: bool):
    model = prepare(MODELS["separable"]())
    grid = grid_of(symmetric=symmetric, per_channel=per_channel)
    for weight, params in chosen(model, grid, percentile).items():
        rows = channels(initializers(model)[weight], params.axis)
        for row, scale, zero_point in zip(rows, params.scale, params.zero_point, strict=True):
            t = histogram_percentile(row, percentile, 4096)
            low, high = max(float(row.min()), -t), min(float(row.max()), t)
            expected = affine_from_range(low, high, grid.qmin, grid.qmax, symmetric=symmetric)
            assert (scale, zero_point) == (np.float32(expected[0]), expected[1])


def test_an_outlier_does_not_set_the_scale():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 16)).astype(np.float32)
    weight[3, 4] = 100
    model = build("(float[N,32] x) => (float[N,16] y) { y = MatMul(x, w) }", w=weight)
    coarse = WeightGrid(-7, 7, symmetric=True, per_channel=True)
    params = chosen(model, coarse)["w"]
    alone = chosen(build("(float[N,32] x) => (float[N,16] y) { y = MatMul(x, w) }", w=np.clip(weight, -4, 4)), coarse)
    others = np.arange(16) != 4
    np.testing.assert_array_equal(params.scale[others], alone["w"].scale[others])
    assert chosen(model, coarse, percentile=99.0)["w"].scale.max() == 100 / 7  # 32 values: one is more than 1 percent
    assert chosen(model, WeightGrid(-7, 7, symmetric=True, per_channel=False), percentile=99.0)["w"].scale[0] < 1


@pytest.mark.parametrize("percentile", [None, 99.0])
def test_weights_that_share_a_scale_whatever_the_granularity(percentile: float | None):
    grid = grid_of(symmetric=True, per_channel=True)
    stack = build("(float[N,2,3,4] x) => (float[N,2,3,5] y) { y = MatMul(x, w) }", w=np.ones((2, 4, 5)))
    assert chosen(stack, grid, percentile)["w"].axis is None
    text = "(float[N,4,6,6] x) => (float[N,4,6,6] y) { y = ConvTranspose<group=2>(x, w) }"
    assert chosen(build(text, w=np.ones((4, 2, 1, 1))), grid, percentile)["w"].axis is None
    first = build("(float[N,4,5] x) => (float[N,3,5] y) { y = MatMul(w, x) }", w=np.ones((3, 4)))
    assert chosen(first, grid, percentile)["w"].axis is None
    text = "(float[N,4] x) => (float[N,4] y) { z = MatMul(x, w) y = MatMul(z, w) }"
    assert set(chosen(build(text, w=np.eye(4)), grid, percentile)) == {"w"}


@pytest.mark.parametrize("percentile", [None, 90.0])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_block_of_inputs_is_chosen_by_itself(percentile: float | None, transposed: bool):
    weight = np.random.default_rng(0).standard_normal((10, 3)).astype(np.float32)
    alone = "(float[N,{k}] x) => (float[N,3] y) {{ y = MatMul(x, w) }}"
    text = "(float[N,10] x) => (float[N,3] y) { y = Gemm<transB=1>(x, w) }" if transposed else alone.format(k=10)
    grid = WeightGrid(-8, 7, symmetric=True, per_channel=True)
    params = chosen(build(text, w=weight.T if transposed else weight), replace(grid, block=4), percentile)["w"]
    assert (params.axis, params.block) == (1 if transposed else 0, 4)
    for i, begin in enumerate((0, 4, 8)):
        part = weight[begin : begin + 4]
        expected = chosen(build(alone.format(k=len(part)), w=part), grid, percentile)["w"]
        np.testing.assert_array_equal(params.scale.take(i, params.axis), expected.scale)
        np.testing.assert_array_equal(params.zero_point.take(i, params.axis), expected.zero_point)


@pytest.mark.parametrize("scales", [ScaleType.Float32, ScaleType.PowerOf2])
@pytest.mark.parametrize("name", ["separable", "residual", "mlp", "autoencoder"])
def test_a_bias_has_the_scale_with_the_least_squared_error(name: str, scales: ScaleType):
    model = prepare(MODELS[name]())
    layers, constants = weight_layers(model), initializers(model)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    grid = grid_of(symmetric=True, per_channel=False, scales=scales)
    found = weight_scales(model, layers, dict.fromkeys(biases, WeightRange(grid)), threads=1)
    assert sorted(found) == sorted(biases)
    for bias, params in found.items():
        b, (scale,) = constants[bias], params.scale

        def error(step: float, b: np.ndarray = b) -> float:
            return float(np.square(fake_quant(b, step, 0, -127, 127).astype(float) - b).sum())

        assert params.axis is None
        if scales is ScaleType.PowerOf2:
            assert np.log2(scale) % 1 == 0
            assert error(scale) == min(error(scale * 2.0**i) for i in range(-5, 6))
        else:
            assert error(scale) <= min(error(np.abs(b).max() / 127 * f) for f in FACTORS) * (1 + 1e-6)
    each = weight_scales(
        model, layers, dict.fromkeys(biases, WeightRange(grid_of(symmetric=True, per_channel=True))), threads=1
    )
    for bias, params in each.items():
        assert params.axis == 0
        q = np.rint(constants[bias] / params.scale)
        np.testing.assert_allclose(q * params.scale, constants[bias], rtol=1e-6)


def test_what_is_not_named_is_left_alone():
    model = prepare(MODELS["separable"]())
    assert weight_scales(model, weight_layers(model), {}, threads=1) == {}
    one = {"stem_w": WeightRange(grid_of(symmetric=True, per_channel=False))}
    assert set(weight_scales(model, weight_layers(model), one, threads=1)) == {"stem_w"}


def test_threads_do_not_matter():
    model = prepare(MODELS["separable"]())
    for per_channel in (False, True):
        one, three = (
            chosen(model, grid_of(symmetric=True, per_channel=per_channel), threads=threads) for threads in (1, 3)
        )
        for weight, params in one.items():
            np.testing.assert_array_equal(params.scale, three[weight].scale)
