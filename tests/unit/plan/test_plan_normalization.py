"""Normalizations in the plan: W xhat + bias is the node's output; why one is left out is the reason it gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fake_quant import dequantize
from reference.inner_tensors import inner_tensors
from reference.norm_models import NormModels, draw_models, norm_models

from quark.onnx.operators.table import NORMALIZATIONS
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import LayerPlan, Plan


def plan_of(models: NormModels, quantized: onnx.ModelProto | None = None) -> Plan:
    return build_plan(models.float_model, quantized or models.quantized, NORMALIZATIONS)


def only(plan: Plan) -> LayerPlan:
    assert plan.skipped == ()
    (layer,) = plan.layers
    return layer


def reason(plan: Plan) -> str:
    assert plan.layers == ()
    (skipped,) = plan.skipped
    return skipped.reason


def layer_of(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == "layer")


@pytest.mark.parametrize("op_type", NORMALIZATIONS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_layer_is_what_its_plan_says(op_type: str, data: st.DataObject):
    """In each position of each element: output = weight * input + bias, all of them as arranged; the samples stay."""
    models = draw_models(data, op_type)
    layer, quantized = only(plan_of(models)), models.quantized
    x = np.random.default_rng(1).standard_normal(models.shape).astype(np.float32) + np.float32(0.5)
    given_x, y = inner_tensors(quantized, {"x": x}, [layer.input.tensor, "z"]).values()
    assert given_x.dtype == (np.float32 if models.given == "float" else models.x_zero.dtype)
    xhat, output = layer.arrangement.input(given_x), layer.arrangement.output(y)
    weight, elements = layer.weight, models.scale_q.size
    real = dequantize(weight.rows_q, weight.scale[:, None], weight.zero_point[:, None])
    np.testing.assert_array_equal(real, models.scale.reshape(-1, 1))
    np.testing.assert_array_equal(weight.rows, real)
    assert (xhat.dtype, xhat.shape) == (np.float32, output.shape)
    assert (len(x), elements) == output.shape[:2]
    assert (layer.groups, layer.conv.group, layer.conv.kernel_shape) == (elements, elements, (1,))
    expected = real * xhat + (0 if layer.bias is None else layer.bias.real[:, None])
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=2e-4 * (1 + np.abs(expected).max()))
    np.testing.assert_array_equal(np.sort(output.reshape(len(x), -1)), np.sort(y.reshape(len(x), -1)))
    # what the float graph feeds is normalized alike: drop_ratio mixes the two
    real_x = given_x if given_x.dtype == np.float32 else dequantize(given_x, layer.input.scale, layer.input.zero_point)
    np.testing.assert_allclose(layer.arrangement.input(real_x), xhat, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", NORMALIZATIONS)
def test_what_the_plan_names(op_type: str):
    layer = only(plan_of(norm_models(op_type)))
    assert (layer.node, layer.op_type, layer.factor) == ("layer", op_type, 1)
    assert (layer.input.tensor, layer.target, layer.float_input) == ("x_q", "z", "x")
    assert (layer.weight.initializer, layer.weight.qmin, layer.weight.qmax) == ("scale_q", -127, 127)
    assert (layer.bias.initializer, -layer.bias.qmin) == ("bias_q", layer.bias.qmax)
    assert 2**31 - 1 - 255 * 127 <= layer.bias.qmax < 2**31


def test_mean_and_variance_may_be_quantized():
    models = norm_models("BatchNormalization", given="float")
    quantized = models.quantized
    text = "m = DequantizeLinear(mean_q, step) v = DequantizeLinear(variance_q, step)"
    parsed = onnx.parser.parse_graph(f"g (int8[6] mean_q, int8[6] variance_q, float step) => (float[6] m) {{ {text} }}")
    quantized.graph.node[-2].input[3:] = ["m", "v"]
    nodes = [*parsed.node, *quantized.graph.node]
    quantized.graph.ClearField("node")
    quantized.graph.node.extend(nodes)
    for name, values in (("mean_q", np.arange(6)), ("variance_q", np.arange(6, 12))):
        quantized.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.int8), name))
    layer = only(plan_of(models, quantized))
    x = np.random.default_rng(0).standard_normal((2, *models.shape[1:])).astype(np.float32)
    (z,) = inner_tensors(quantized, {"x": x}, ["z"]).values()
    expected = layer.weight.scale[:, None] * layer.weight.rows_q * layer.arrangement.input(x) + layer.bias.real[:, None]
    np.testing.assert_allclose(layer.arrangement.output(z), expected, rtol=1e-4, atol=1e-4)


def test_layer_normalization_with_other_outputs_in_use():
    """Mean and InvStdDev do not depend on the scale."""
    models = norm_models("LayerNormalization")
    quantized = models.quantized
    layer_of(quantized).output.extend(["mean", "inverse"])
    quantized.graph.node[-1].CopyFrom(onnx.helper.make_node("Add", ["z", "mean"], ["y"]))
    layer = only(plan_of(models, quantized))
    assert layer.weight.initializer == "scale_q"


def test_another_epsilon_is_another_layer():
    models = norm_models("InstanceNormalization")
    other = replace(models, op="InstanceNormalization<epsilon = 0.01>")
    assert "no such layer" in reason(plan_of(models, other.quantized))


def test_a_scale_along_the_samples():
    models = NormModels(
        op="LayerNormalization<axis = 0>", shape=(3, 4), scale_q=np.arange(1, 13, dtype=np.int8).reshape(3, 4)
    )
    layer = only(plan_of(models))
    for use in (layer.arrangement.input, layer.arrangement.output):
        with pytest.raises(ValueError, match="first axis, which counts samples"):
            use(np.ones((3, 4), np.float32))
