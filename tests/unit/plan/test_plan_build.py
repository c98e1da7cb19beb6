"""The plan: what it says of a layer reproduces the layer. Why it leaves one out: test_plan_reasons.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_static
from reference.plan_models import CONSTANTS, FLOAT, QUANTIZED, B, W, plan_of
from reference.planned_layers import assert_is_its_plan
from small_models import MODELS, Reader, build, samples

from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.preparation.prepare import prepare

ALL_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def only(plan: Plan) -> LayerPlan:
    assert plan.skipped == ()
    (layer,) = plan.layers
    return layer


def test_a_gemm():
    layer = only(plan_of())
    assert (layer.node, layer.op_type, layer.groups, layer.conv, layer.factor) == (
        "layer",
        "Gemm",
        1,
        None,
        1,
    )
    assert (layer.input.tensor, layer.input.scale, layer.input.zero_point) == ("x_q", 0.25, 7)
    assert layer.target == "y"
    np.testing.assert_array_equal(layer.weight.rows, W.T)
    np.testing.assert_array_equal(layer.weight.rows_q, W.T)
    np.testing.assert_array_equal(layer.weight.scale, np.ones(4))
    assert layer.weight.initializer == "w_quantized"
    np.testing.assert_array_equal(layer.weight.layout.values(layer.weight.rows_q), W)
    assert (layer.weight.qmin, layer.weight.qmax) == (-127, 127)
    np.testing.assert_array_equal(layer.bias.real, B)
    most = 2**31 - 1 - 3 * (255 - 7) * 127  # what three products with x - 7 leave of int32
    assert (layer.bias.initializer, layer.bias.qmin, layer.bias.qmax) == ("b_quantized", -most, most)


# ---- layers of real models reproduce themselves ---------------------------------------------------


def quantized_by_onnxruntime(model: onnx.ModelProto, folder: Path, *, per_channel: bool) -> onnx.ModelProto:
    path, copy = folder / "quantized.onnx", onnx.ModelProto()
    copy.CopyFrom(model)  # onnxruntime's quantizer changes its input
    quantize_static(
        copy, path, Reader(samples(model, 8)), per_channel=per_channel,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return onnx.load(path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_a_layer_is_what_its_plan_says(name: str, per_channel: bool, tmp_path: Path):
    model = prepare(MODELS[name]())
    quantized = quantized_by_onnxruntime(model, tmp_path, per_channel=per_channel)
    plan = build_plan(model, quantized, ALL_TYPES)
    assert plan.layers
    for layer in plan.layers:
        assert_is_its_plan(layer, model, quantized, samples(model, 3, seed=1))


# ---- pairing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "float_text",
    [
        "(float[N,3] x) => (float[N,4] z) { [layer] z = Gemm(x, v, b) }",
        "(float[N,3] x) => (float[N,4] y) { [other] y = Gemm(x, v, b) }",
        "(float[N,3] x) => (float[N,4] z) { [other] z = Gemm(x, w, b) }",
    ],
    ids=["node", "output", "weight"],
)
def test_a_float_layer_is_found_by_one_of_three_names(float_text: str):
    layer = only(plan_of(float_text=float_text, float_constants={"v": W}))
    assert layer.target == ("y" if "float[N,4] y" in float_text else "z")


def test_a_namesake_of_another_shape_is_passed_over():
    """The node's name leads to another layer, its weight's name to the right one."""
    float_text = """(float[N,3] x) => (float[N,5] u, float[N,4] z) {
        [layer] u = Gemm(x, v)
        [renamed] z = Gemm(x, w, b)
    }"""
    assert only(plan_of(float_text=float_text, float_constants={"v": np.ones((3, 5))})).target == "z"


NAMELESS = "(float[N,3] x) => (float[N,4] z) { [else] z = Gemm(x, v, b) }"


def test_a_weight_that_is_near_is_enough():
    assert only(plan_of(float_text=NAMELESS, float_constants={"v": W + 0.3})).target == "z"


def test_two_weights_that_are_near_are_not():
    text = NAMELESS.replace("z)", "z, float[N,4] t)").replace("}", "[third] t = Gemm(x, u) }")
    assert "no such layer" in reason(plan_of(float_text=text, float_constants={"v": W + 0.3, "u": W - 0.3}))


def test_a_namesake_of_another_weight_is_passed_over():
    float_text = """(float[N,3] x) => (float[N,4] z, float[N,4] t) {
        [layer] t = Gemm(x, v) [renamed] z = Gemm(x, w, b)
    }"""
    assert only(plan_of(float_text=float_text, float_constants={"v": -W})).target == "z"


def test_only_the_wanted_types_are_mentioned():
    plan = build_plan(build(FLOAT, w=W, b=B), build(QUANTIZED, **CONSTANTS), ("Conv",))
    assert plan == Plan((), ())


# ---- inputs, weights and biases in other forms ----------------------------------------------------


@pytest.mark.parametrize(
    "nodes",
    [
        "x_real = Relu(x)",
        "x_q = QuantizeLinear(x, x_scale) x_real = DequantizeLinear(x_q, x_scale)",
        """x_q = QuantizeLinear(x, x_scale, x_zero)
        dequantized = DequantizeLinear(x_q, x_scale, x_zero)
        x_real = Relu(dequantized)""",
    ],
    ids=["not quantized", "no zero point", "an operator between"],
)  # fmt: skip
def test_other_inputs_are_taken_as_floats(nodes: str):
    start = QUANTIZED.index("x_q ="), QUANTIZED.index("w_real")
    found = only(plan_of(QUANTIZED[: start[0]] + nodes + " " + QUANTIZED[start[1] :])).input
    assert (found.tensor, found.scale, found.zero_point) == ("x_real", 1.0, 0)


def test_16_bit_inputs_are_taken_as_floats():
    found = only(plan_of(opset=21, x_zero=np.uint16(7))).input
    assert (found.tensor, found.scale, found.zero_point) == ("x_real", 1.0, 0)


def test_transposed_scaled_per_channel():
    """transB, alpha and beta; one scale and zero point per output channel."""
    gemm = "Gemm<transB=1, alpha=0.5, beta=2.0>"
    quantized = QUANTIZED.replace("Gemm", gemm).replace(
        "DequantizeLinear(w_quantized, w_scale)", "DequantizeLinear<axis=0>(w_quantized, w_scale, w_zero)"
    )
    layer = only(
        plan_of(
            quantized,
            FLOAT.replace("Gemm", gemm),
            float_constants={"w": W.T},
            w_quantized=(W.T - [[1], [2], [3], [4]]).clip(-128, 127).astype(np.int8),
            w_scale=np.ones(4),
            w_zero=np.array([-1, -2, -3, -4], np.int8),
        )
    )
    assert layer.factor == 0.5
    np.testing.assert_array_equal(layer.weight.layout.values(layer.weight.rows), W.T)
    np.testing.assert_array_equal(layer.weight.zero_point, [-1, -2, -3, -4])
    assert layer.weight.qmin == -128  # asymmetric: the whole type
    np.testing.assert_array_equal(layer.bias.real, 2 * B)
    np.testing.assert_array_equal(layer.bias.scale, np.full(4, 0.5))


def grouped_conv_transpose(axis: int, *, weight: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> Plan:
    """A layer of two groups; weight: real values, (4, 3, 2)."""
    node = "[layer] y = ConvTranspose<group=2, strides=[2]>"
    text = "(float[N,4,5] x) => (float[N,6,10] y) {{ {} }}"
    shape = [-1 if i == axis else 1 for i in range(3)]
    return plan_of(
        text.format(f"w_real = DequantizeLinear<axis={axis}>(w_quantized, w_scale, w_zero) {node}(x, w_real)"),
        text.format(f"{node}(x, w)"),
        float_constants={"w": weight},
        w_quantized=(weight / scale.reshape(shape) + zero.reshape(shape)).astype(np.int8),
        w_scale=scale,
        w_zero=zero,
    )


def test_the_groups_of_a_conv_transpose_share_the_scales_of_its_channels():
    scale, zero = np.array([0.5, 1.0, 2.0]), np.array([3, 4, 5], np.int8)
    weight = 2.0 * np.arange(-10, 14).reshape(4, 3, 2)
    layer = only(grouped_conv_transpose(1, weight=weight, scale=scale, zero=zero))
    assert (layer.groups, layer.op_type) == (2, "ConvTranspose")
    np.testing.assert_array_equal(layer.weight.scale, np.tile(scale, 2))
    np.testing.assert_array_equal(layer.weight.zero_point, np.tile(zero, 2))
    # row (group, output): the two inputs of the group, two taps of each
    rows = [np.concatenate([weight[2 * group, o], weight[2 * group + 1, o]]) for group in range(2) for o in range(3)]
    np.testing.assert_array_equal(layer.weight.rows, rows)
    real = (layer.weight.rows_q - layer.weight.zero_point[:, None]) * layer.weight.scale[:, None]
    np.testing.assert_array_equal(real, rows)


def test_scales_along_the_inputs_of_a_conv_transpose():
    weight = np.arange(-12.0, 12).reshape(4, 3, 2)
    plan = grouped_conv_transpose(0, weight=weight, scale=np.ones(4), zero=np.zeros(4, np.int8))
    assert "neither one constant per tensor nor one per output" in reason(plan)


def test_minus_128_may_be_used_where_it_was():
    assert (
        only(plan_of(w_quantized=np.where(W == 127, 127, np.where(W == -7, -128, W)).astype(np.int8))).weight.qmin
        == -128
    )


def test_a_float_bias_stays():
    bias = only(plan_of(QUANTIZED.replace("b_real = DequantizeLinear(b_quantized, b_scale)", ""), b_real=B)).bias
    assert bias.initializer is None
    np.testing.assert_array_equal(bias.real, B)


def test_a_bias_with_a_zero_point_stays():
    bias = only(
        plan_of(
            QUANTIZED.replace("(b_quantized, b_scale)", "(b_quantized, b_scale, b_zero)"),
            b_quantized=(B + 10).astype(np.uint8), b_scale=1.0, b_zero=np.uint8(10),
        )
    ).bias  # fmt: skip
    assert bias.initializer is None
    np.testing.assert_array_equal(bias.real, B)


@pytest.mark.parametrize("beta", [0.0, None], ids=["beta 0", "none"])
def test_no_bias(beta: float | None):
    to = "Gemm(x_real, w_real)" if beta is None else "Gemm<beta=0.0>(x_real, w_real, b_real)"
    float_to = "Gemm(x, w)" if beta is None else "Gemm<beta=0.0>(x, w, b)"
    quantized = QUANTIZED.replace("Gemm(x_real, w_real, b_real)", to)
    assert only(plan_of(quantized, FLOAT.replace("Gemm(x, w, b)", float_to))).bias is None


def reason(plan: Plan) -> str:
    assert plan.layers == ()
    (skipped,) = plan.skipped
    assert skipped.node == "layer"
    return skipped.reason


def test_trans_a():
    text = FLOAT.replace("[N,3]", "[3,N]").replace("Gemm", "Gemm<transA=1>")
    quantized = QUANTIZED.replace("[N,3]", "[3,N]").replace("Gemm", "Gemm<transA=1>")
    (layer,) = plan_of(quantized, text).layers
    x = np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(layer.arrangement.input(x), x.T)


def test_a_bias_that_another_node_reads_stays():
    nodes = QUANTIZED[QUANTIZED.index("{") + 1 : -1]
    bias = only(plan_of(f"(float[N,3] x) => (float[N,4] y, float[4] z) {{ {nodes} z = Neg(b_real) }}")).bias
    assert bias.initializer is None
    np.testing.assert_array_equal(bias.real, B)


SQUARE = np.arange(16.0).reshape(4, 4)
THREE = """(float[N,4] x) => (float[N,4] y) {{
    [first] s = {first} [middle] t = MatMul(s, v) [last] y = {last}
}}"""


def plan_of_three(first: str, last: str, float_first: str, float_last: str) -> Plan:
    quantized = THREE.format(first=first, last=last).replace(
        "{", "{ w_real = DequantizeLinear(w_quantized, w_scale) v_real = DequantizeLinear(v_quantized, w_scale)"
    )
    return plan_of(
        quantized.replace("(s, v)", "(s, v_real)"), THREE.format(first=float_first, last=float_last),
        float_constants={"w": SQUARE, "v": SQUARE, "b": B},
        w_quantized=SQUARE.astype(np.int8), v_quantized=SQUARE.astype(np.int8), b=B,
    )  # fmt: skip


def test_layers_that_share_a_weight_name_each_other():
    plan = plan_of_three("MatMul(x, w_real)", "Gemm(t, w_real, b)", "MatMul(x, w)", "Gemm(t, w, b)")
    assert plan.skipped == ()
    assert [(layer.node, layer.shares) for layer in plan.layers] == [
        ("first", ("last",)),
        ("middle", ()),
        ("last", ("first",)),
    ]


def test_layers_that_arrange_a_weight_in_two_ways_are_left():
    plan = plan_of_three("MatMul(x, w_real)", "Gemm<transB=1>(t, w_real, b)", "MatMul(x, w)", "Gemm<transB=1>(t, w, b)")
    assert [layer.node for layer in plan.layers] == ["middle"]
    assert {layer.node: layer.reason for layer in plan.skipped} == dict.fromkeys(
        ("first", "last"), "its weight is arranged in another way in 'first' than in 'last'"
    )


def test_neither_model_is_changed():
    float_model, quantized = build(FLOAT, w=W, b=B), build(QUANTIZED, **CONSTANTS)
    before = float_model.SerializeToString(), quantized.SerializeToString()
    build_plan(float_model, quantized, ALL_TYPES)
    assert (float_model.SerializeToString(), quantized.SerializeToString()) == before


@pytest.mark.parametrize(
    ("end", "kind"),
    [
        ("s = Sigmoid(z) y = Mul(s, z)", "silu"),
        ("y = Swish(z)", "silu"),
        ("y = Swish<alpha = 2.0>(z)", None),
    ],
)
def test_silu_is_a_node_or_a_graph(end: str, kind: str | None) -> None:
    """ONNX has Swish from opset 24 on; not every onnxruntime runs it."""
    float_text = FLOAT.replace("y = Gemm(x, w, b)", "z = Gemm(x, w, b) t = Sigmoid(z) y = Mul(z, t)")
    quantized = QUANTIZED.replace("y = Gemm(x_real, w_real, b_real)", f"z = Gemm(x_real, w_real, b_real) {end}")
    (layer,) = plan_of(quantized, float_text, opset=24).layers
    assert (layer.stage and layer.stage.activation.kind) == kind
