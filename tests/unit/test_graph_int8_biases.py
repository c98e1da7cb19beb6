"""Biases of 8 bits with scales of their own, beside int32 biases in everything else."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from reference.fake_quant import fake_quant
from small_models import MODELS, initializers, run, samples

from quark.onnx.graph.insert_qdq import QdqOptions, calibration_tensors, insert_qdq
from quark.onnx.graph.prepare import prepare
from quark.onnx.quantization.config.spec import ScaleType


def quantized(model: onnx.ModelProto, *, int8: bool, scales: ScaleType, per_channel: bool = False) -> onnx.ModelProto:
    options = QdqOptions(weight_scales=scales, int8_biases=int8, per_channel=per_channel)
    return insert_qdq(model, dict.fromkeys(calibration_tensors(model, options), (-4.0, 4.0)), {}, options)


def biases(model: onnx.ModelProto, float_model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Integers and scale of each layer's bias, by its name in the float model."""
    makers, constants = {node.output[0]: node for node in model.graph.node}, initializers(model)
    names = {node.name: node.input[2] for node in float_model.graph.node if len(node.input) > 2}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2:
            integers, scale, zero_point = (constants[name] for name in makers[node.input[2]].input)
            assert not zero_point.any()
            found[names[node.name]] = (integers, scale)
    return found


@pytest.mark.parametrize("scales", [ScaleType.Float32, ScaleType.PowerOf2])
@pytest.mark.parametrize("name", ["separable", "residual", "mlp", "autoencoder"])
def test_every_bias_has_the_scale_with_the_least_squared_error(name: str, scales: ScaleType):
    model = prepare(MODELS[name]())
    found = biases(quantized(model, int8=True, scales=scales), model)
    assert len(found) > 1
    constants = initializers(model)
    for bias, (integers, scale) in found.items():
        b, s = constants[bias], float(scale)
        assert integers.dtype == np.int8
        assert scale.shape == ()
        np.testing.assert_array_equal(integers, np.clip(np.rint(b / np.float32(s)), -128, 127))

        def error(step: float, b: np.ndarray = b) -> float:
            return float(np.square(fake_quant(b, step, 0, -127, 127).astype(float) - b).sum())

        if scales is ScaleType.PowerOf2:
            assert np.log2(s) % 1 == 0
            assert error(s) == min(error(s * 2.0**i) for i in range(-5, 6))
        else:
            assert error(s) <= min(error(np.abs(b).max() / 127 * 2 ** (-i / 4)) for i in range(25)) * (1 + 1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
def test_nothing_else_changes(per_channel: bool):
    model = prepare(MODELS["separable"]())
    wide, narrow = (
        quantized(model, int8=int8, scales=ScaleType.PowerOf2, per_channel=per_channel) for int8 in (False, True)
    )
    assert {integers.dtype for integers, _ in biases(wide, model).values()} == {np.dtype(np.int32)}
    bias_names = set(biases(narrow, model))
    others = [
        {name: value for name, value in initializers(m).items() if not name.startswith(tuple(bias_names))}
        for m in (wide, narrow)
    ]
    assert others[0].keys() == others[1].keys()
    for name, value in others[0].items():
        np.testing.assert_array_equal(value, others[1][name])
    onnx.checker.check_model(narrow, full_check=True)
    arrays = samples(model, 8)
    for plain, optimised, float_output in zip(
        run(narrow, arrays), run(narrow, arrays, optimise=True), run(model, arrays), strict=True
    ):
        np.testing.assert_allclose(plain, optimised, rtol=0, atol=0.1 * np.ptp(float_output))
