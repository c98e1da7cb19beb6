"""Weights, biases and outputs of every integer type, as the plan sees them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import build

from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import LayerPlan, Plan

TYPES = ["int2", "uint2", "int4", "uint4", "int8", "uint8", "int16", "uint16"]
SYMMETRIC_LEAST = {"int8": -127, "int16": -32767}  # onnxruntime's quantizer leaves one integer out


def dtype_of(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name) if name.endswith(("t2", "t4")) else name)


def plan_of(
    weight: np.ndarray,
    integers: np.ndarray,
    scale: np.ndarray | float,
    zero: np.ndarray | None = None,
    *,
    bias: np.ndarray | None = None,
    output: np.ndarray | None = None,
    domain: str = "",
) -> Plan:
    """Plan a MatMul by a weight, or a Gemm with an integer bias; the output may be quantized too."""
    rows, columns = weight.shape
    header = f"(float[N,{rows}] x) => (float[N,{columns}] y)"
    axis = "<axis=1>" if np.ndim(scale) else ""
    op, dot = ("Gemm", ", c") if bias is not None else ("MatMul", "")
    parts = [f"r = {domain}DequantizeLinear{axis}(q, s{', z' if zero is not None else ''})"]
    constants = {"q": integers, "s": np.float32(scale)}
    if zero is not None:
        constants["z"] = zero
    if bias is not None:
        parts.append(f"c = {domain}DequantizeLinear(b_q, b_s)")
        constants |= {"b_q": bias, "b_s": np.float32(1.0)}
    result = "y" if output is None else "t"
    parts.append(f"[layer] {result} = {op}(x, r{dot})")
    if output is not None:
        parts.append(f"t_q = {domain}QuantizeLinear(t, o_s, o_z) y = {domain}DequantizeLinear(t_q, o_s, o_z)")
        constants |= {"o_s": np.float32(0.5), "o_z": output}
    quantized = onnx.parser.parse_model(
        f'<ir_version: 13, opset_import: ["": {17 if domain else 25}, "com.microsoft": 1]> g {header} '
        f"{{ {' '.join(parts)} }}"
    )
    quantized.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    float_constants = {"w": weight, **({} if bias is None else {"b": np.zeros(columns)})}
    float_model = build(f"{header} {{ [layer] y = {op}(x, w{'' if bias is None else ', b'}) }}", **float_constants)
    return build_plan(float_model, quantized, (op,), output_qdq=True)


def only(plan: Plan) -> LayerPlan:
    assert plan.skipped == ()
    (layer,) = plan.layers
    return layer


@pytest.mark.parametrize("domain", ["", "com.microsoft."], ids=["onnx", "onnxruntime"])
@pytest.mark.parametrize("name", TYPES)
def test_a_weight_may_use_all_integers_of_its_type(name: str, domain: str):
    limits = ml_dtypes.iinfo(dtype_of(name))
    numbers = np.random.default_rng(0).integers(int(limits.min), int(limits.max) + 1, (6, 5))
    zero = np.array([int(limits.max) // 2 + 1] * 5).astype(dtype_of(name))
    scale = np.linspace(0.5, 1, 5, dtype=np.float32)
    weight = (numbers - zero.astype(int)) * scale
    layer = only(plan_of(weight, numbers.astype(dtype_of(name)), scale, zero, domain=domain)).weight
    assert (layer.qmin, layer.qmax) == (limits.min, limits.max)
    np.testing.assert_array_equal(layer.rows_q, numbers.T)
    np.testing.assert_array_equal(layer.zero_point, zero.astype(int))
    np.testing.assert_allclose(layer.rows, weight.T, rtol=1e-6)


@pytest.mark.parametrize("name", TYPES)
def test_a_symmetric_weight_leaves_out_what_it_did_not_use(name: str):
    limits = ml_dtypes.iinfo(dtype_of(name))
    least = SYMMETRIC_LEAST.get(name, int(limits.min))
    numbers = np.array([[least, 0], [1, int(limits.max)]])
    layer = only(plan_of(numbers.astype(float), numbers.astype(dtype_of(name)), 1.0)).weight
    assert (layer.qmin, layer.qmax) == (least, limits.max)
    numbers[0, 0] = limits.min
    layer = only(plan_of(numbers.astype(float), numbers.astype(dtype_of(name)), 1.0)).weight
    assert layer.qmin == limits.min


@pytest.mark.parametrize("name", TYPES)
def test_another_weight_is_told_from_a_rounded_one(name: str):
    """What AdaRound makes of the weight is near it; a weight drawn anew is not."""
    limits = ml_dtypes.iinfo(dtype_of(name))
    low, high = int(limits.min), int(limits.max)
    zero = np.array(0 if low < 0 else high // 2 + 1).astype(dtype_of(name))
    span = (high - low) / 2

    def drawn(seed: int) -> np.ndarray:
        return span / 2 * np.random.default_rng(seed).standard_normal((64, 32))

    def rounded(weight: np.ndarray, seed: int) -> np.ndarray:
        up = np.random.default_rng(seed).random(weight.shape) < weight - np.floor(weight)
        return np.clip(np.floor(weight) + up + int(zero), low, high).astype(dtype_of(name))

    assert only(plan_of(drawn(0), rounded(drawn(0), 1), 1.0, zero))
    (skipped,) = plan_of(drawn(0), rounded(drawn(1), 1), 1.0, zero).skipped
    assert "not near that of the float model" in skipped.reason


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2"])
def test_a_bias_of_few_bits_leaves_the_layer_alone(name: str):
    integers = np.eye(3, dtype=np.int8)
    (skipped,) = plan_of(np.eye(3), integers, 1.0, bias=np.ones(3).astype(dtype_of(name))).skipped
    assert skipped.reason == f"a bias of type {name} is not tuned yet"


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
def test_a_bias_may_use_all_integers_of_its_type(name: str):
    bias = only(plan_of(np.eye(3), np.eye(3, dtype=np.int8), 1.0, bias=np.ones(3, name))).bias
    assert bias is not None
    assert (bias.qmin, bias.qmax) == (np.iinfo(name).min, np.iinfo(name).max)


def test_an_int32_bias_behind_a_float_input_needs_no_room_for_integer_products():
    bias = only(plan_of(np.eye(3), np.eye(3, dtype=np.int8), 1.0, bias=np.ones(3, np.int32))).bias
    assert bias is not None
    assert (bias.qmin, bias.qmax) == (-(2**31) + 1, 2**31 - 1)


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16"])
def test_the_output_grid_is_that_of_its_type(name: str):
    stage = only(plan_of(np.eye(3), np.eye(3, dtype=np.int8), 1.0, output=np.array(3, name))).stage
    assert stage is not None
    assert stage.grid == (0.5, 3, np.iinfo(name).min, np.iinfo(name).max)
