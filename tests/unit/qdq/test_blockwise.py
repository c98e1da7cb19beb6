"""Scales of blocks: written as ONNX defines and onnxruntime's quantizer makes them, and read into the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_static
from reference.fake_quant import affine_from_range
from reference.inner_tensors import inner_tensors
from reference.planned_layers import assert_is_its_plan
from small_models import Arrays, Reader, build, initializers, run, samples

from quark.onnx import (
    CalibMethod,
    Int4Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
)
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import LayerPlan
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.weight_params import WeightParams

NUMPY = {
    QuantType.QInt4: ml_dtypes.int4, QuantType.QUInt4: ml_dtypes.uint4, QuantType.QInt8: np.int8,
    QuantType.QUInt8: np.uint8, QuantType.QInt16: np.int16, QuantType.QUInt16: np.uint16,
}  # fmt: skip
MATMUL = "(float[N,{k}] x) => (float[N,{n}] y) {{ [layer] y = MatMul(x, w) }}"
GEMM = "(float[N,{k}] x) => (float[N,{n}] y) {{ [layer] y = Gemm<transB={t}>(x, w, b) }}"


def options_of(kind: QuantType, block: int, *, symmetric: bool) -> QdqOptions:
    return QdqOptions(weight_type=kind, weight_symmetric=symmetric, per_channel=True, block=block)


def quantized(
    model: onnx.ModelProto, options: QdqOptions, weights: dict[str, WeightParams] | None = None
) -> tuple[onnx.ModelProto, Arrays]:
    data = samples(model, 6)
    names = calibration_tensors(model, options)
    values = {**data, **inner_tensors(model, data, [name for name in names if name not in data])}
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in names}
    result = insert_qdq(model, ranges, weights or {}, options)
    onnx.checker.check_model(result, full_check=True)
    return result, data


def dequantized(values: Arrays, axis: int, block: int) -> np.ndarray:
    """The values by ONNX's definition: the weight at i along the axis has the scale at i // block_size."""
    integers, scale, zero = (values[f"w_{end}"].astype(np.float64) for end in ("quantized", "scale", "zero_point"))
    at = np.arange(integers.shape[axis]) // block
    return (integers - zero.take(at, axis)) * scale.take(at, axis)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(NUMPY)),
    st.tuples(st.integers(1, 11), st.integers(1, 5)),
    st.integers(2, 6),
    st.sampled_from(["MatMul", "Gemm", "transB"]),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_each_block_has_the_scale_of_its_minimum_and_maximum(
    seed: int, kind: QuantType, shape: tuple[int, int], block: int, op: str, symmetric: bool
):
    """Blocks that do not divide the inputs, and odd counts of 4-bit elements, included."""
    inputs, outputs = shape
    rng, axis = np.random.default_rng(seed), 1 if op == "transB" else 0
    weight = rng.standard_normal((outputs, inputs) if axis else shape).astype(np.float32)
    text = (MATMUL if op == "MatMul" else GEMM).format(k=inputs, n=outputs, t=axis)
    constants = {"w": weight} if op == "MatMul" else {"w": weight, "b": np.ones(outputs)}
    model = prepare(build(text, **constants), opset=21)
    result, data = quantized(model, options_of(kind, block, symmetric=symmetric))
    values = initializers(result)
    limits = ml_dtypes.iinfo(NUMPY[kind])
    low, high = int(limits.min), int(limits.max)
    lowest = -high if symmetric and low < 0 and limits.bits >= 8 else low
    for o in range(outputs):
        row = weight[o] if axis else weight[:, o]
        for b in range(-(-inputs // block)):
            part = row[b * block : (b + 1) * block]
            at = (o, b) if axis else (b, o)
            expected = affine_from_range(float(part.min()), float(part.max()), lowest, high, symmetric=symmetric)
            assert (values["w_scale"][at], int(values["w_zero_point"][at])) == expected
    assert values["w_quantized"].dtype == values["w_zero_point"].dtype == NUMPY[kind]
    steps = dequantized({**values, "w_scale": np.ones_like(values["w_scale"])}, axis, block)
    assert steps.shape == weight.shape
    scale = values["w_scale"].repeat(block, axis).take(np.arange(inputs), axis)
    assert (np.abs(dequantized(values, axis, block) - weight) <= 1.001 * scale).all()
    (ours,), (expected,) = run(result, data), ReferenceEvaluator(result).run(None, data)
    assert np.abs(ours - expected).max() <= 1.01 * values["y_scale"]


@pytest.mark.parametrize("kind", [QuantType.QInt4, QuantType.QUInt4, QuantType.QInt8], ids=str)
@pytest.mark.parametrize("block", [4, 5, 16])
def test_equal_to_quantize_static_to_the_bit(kind: QuantType, block: int, tmp_path: Path):
    weight = np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32)
    model = prepare(build(MATMUL.format(k=16, n=6), w=weight), opset=21)
    ours, data = quantized(model, options_of(kind, block, symmetric=True))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    quantize_static(
        copy,
        tmp_path / "q.onnx",
        SimpleNamespace(get_next=iter([data, None]).__next__),
        activation_type=QuantType.QUInt8,
        weight_type=kind,
        extra_options={"BlockSize": block, "WeightSymmetric": True},
    )
    expected, actual = initializers(onnx.load(tmp_path / "q.onnx")), initializers(ours)
    if expected["w_scale"].ndim != 2:
        pytest.skip("this onnxruntime has no BlockSize")
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        same = np.asarray(actual[name], np.float64), np.asarray(value, np.float64)
        if name == "w_quantized" and kind is QuantType.QInt8:  # theirs may use -128 where it rounds to it
            np.testing.assert_allclose(*same, atol=1)
        else:
            np.testing.assert_array_equal(*same, err_msg=name)


def test_given_scales_are_used_as_they_are():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((10, 3)).astype(np.float32)
    model = prepare(build(MATMUL.format(k=10, n=3), w=weight), opset=21)
    scale = rng.uniform(0.05, 0.2, (3, 3)).astype(np.float32)
    zero = rng.integers(5, 10, (3, 3)).astype(np.int32)
    options = options_of(QuantType.QUInt4, 4, symmetric=False)
    values = initializers(quantized(model, options, {"w": WeightParams(scale, zero, 0, 4)})[0])
    np.testing.assert_array_equal(values["w_scale"], scale)
    np.testing.assert_array_equal(values["w_zero_point"].astype(np.int32), zero)
    at = np.arange(10) // 4
    expected = np.clip(np.rint(weight / scale[at]) + zero[at], 0, 15)
    np.testing.assert_array_equal(values["w_quantized"].astype(np.int32), expected)


def test_other_layers_have_one_scale_per_channel():
    rng = np.random.default_rng(2)
    model = prepare(
        build(
            """(float[N,4,6] x, float[N,4,6] v) => (float[N,6,6] y, float[N,4,5] z, float[N,4,4] u) {
                [conv] y = Conv(x, w, b) [stack] z = MatMul(x, m) t = Transpose<perm=[0,2,1]>(v) [two] u = MatMul(x, t)
            }""",
            w=rng.standard_normal((6, 4, 1)), b=rng.standard_normal(6), m=rng.standard_normal((1, 6, 5)),
        ),
        opset=21,
    )  # fmt: skip
    values = initializers(quantized(model, options_of(QuantType.QInt4, 4, symmetric=True))[0])
    assert (values["w_scale"].shape, values["m_scale"].shape) == ((6,), ())


# ---- the plan --------------------------------------------------------------------------------------


def plan_of(text: str, block: int, axis: int, weight: np.ndarray, scale: np.ndarray) -> tuple[LayerPlan | None, str]:
    """Plan a float layer whose quantized form has int8 weights in blocks; or return why there is no plan."""
    model = build(text, opset=21, w=weight)
    dequantize = helper.make_node("DequantizeLinear", ["q", "s"], ["r"], axis=axis, block_size=block)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.node[0].input[1] = "r"
    result.graph.node.insert(0, dequantize)
    at = np.arange(weight.shape[axis]) // block
    integers = np.rint(weight / scale.take(np.minimum(at, scale.shape[axis] - 1), axis))
    del result.graph.initializer[:]
    result.graph.initializer.extend(
        [numpy_helper.from_array(integers.astype(np.int8), "q"), numpy_helper.from_array(scale, "s")]
    )
    plan = build_plan(model, result, ("MatMul", "Gemm", "Conv"))
    if plan.skipped:
        return None, plan.skipped[0].reason
    (layer,) = plan.layers
    assert_is_its_plan(layer, model, result, samples(model, 3))
    return layer, ""


PLANS = {  # text, block, axis, shape of the weight, blocks per row of the plan
    "MatMul": (MATMUL.format(k=12, n=3), 4, 0, (12, 3), 3),
    "blocks that do not divide": (MATMUL.format(k=10, n=3), 4, 0, (10, 3), 5),
    "blocks of a prime": (MATMUL.format(k=8, n=3), 3, 0, (8, 3), 8),
    "one block": (MATMUL.format(k=8, n=3), 16, 0, (8, 3), 1),
    "blocks of outputs": (MATMUL.format(k=6, n=4), 2, 1, (6, 4), 6),
    "Gemm": ("(float[N,12] x) => (float[N,5] y) { [layer] y = Gemm<transB=1>(x, w) }", 6, 1, (5, 12), 2),
    "channels of a Conv, for each place in the kernel": (
        "(float[N,6,5,5] x) => (float[N,4,3,3] y) { [layer] y = Conv(x, w) }",
        2,
        1,
        (4, 6, 3, 3),
        54,
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_layer_is_what_its_plan_says(name: str):
    text, block, axis, shape, blocks = PLANS[name]
    rng = np.random.default_rng(3)
    scales = list(shape)
    scales[axis] = -(-shape[axis] // block)
    weight, scale = rng.standard_normal(shape).astype(np.float32), rng.uniform(0.03, 0.06, scales).astype(np.float32)
    layer, reason = plan_of(text, block, axis, weight, scale)
    assert layer is not None, reason
    outputs = len(layer.weight.rows)
    assert (
        layer.weight.scale.shape == layer.weight.zero_point.shape == ((outputs, blocks) if blocks > 1 else (outputs,))
    )


def test_scales_that_are_not_those_of_blocks():
    weight = np.ones((12, 3), np.float32)
    layer, reason = plan_of(MATMUL.format(k=12, n=3), 4, 0, weight, np.full((2, 3), 0.1, np.float32))
    assert layer is None
    assert "nor one per output channel or block" in reason


def test_blocks_with_equal_scales_are_one():
    weight = np.random.default_rng(4).standard_normal((12, 3)).astype(np.float32)
    layer, _ = plan_of(MATMUL.format(k=12, n=3), 4, 0, weight, np.full((3, 3), 0.05, np.float32))
    assert layer is not None
    assert layer.weight.scale.shape == (3,)


def test_options_of_a_weight_stand_above_the_others():
    weight = np.random.default_rng(5).standard_normal((12, 3)).astype(np.float32)
    model = prepare(build(MATMUL.format(k=12, n=3), w=weight), opset=21)
    options = replace(
        options_of(QuantType.QInt4, 4, symmetric=True), overrides={"w": [{"quant_type": QuantType.QInt8}]}
    )
    values = initializers(quantized(model, options)[0])
    assert (values["w_quantized"].dtype, values["w_scale"].shape) == (np.int8, ())


@pytest.mark.parametrize(
    "graph",
    [
        "(float[N,4,5] x) => (float[N,6,5] y) { y = MatMul(w, x) }",
        "(float[N,4] x) => (float[N,6] y, float[1,4] z) { y = Gemm<transB=1>(x, w) z = Gather(w, index) }",
        "(float[N,4] x) => (float[N,6] y, float[4,6] z) { y = Gemm<transB=1>(x, w) z = Transpose(w) }",
    ],
    ids=["first", "table", "data"],
)
@pytest.mark.parametrize("method", [CalibMethod.MinMax, CalibMethod.MinOutputMSE], ids=lambda m: m.name)
def test_no_blocks_where_not_all_readers_know_them(graph: str, method: CalibMethod):
    weight = np.random.default_rng(0).standard_normal((6, 4))
    model = build(graph, **({"w": weight, "index": np.array([3])} if "Gather" in graph else {"w": weight}))
    data = samples(model, 12)
    spec = Int4Spec(quant_granularity=QuantGranularity.Group, calibration_method=method)
    config = QConfig(QLayerConfig(UInt8Spec(), weight=spec), extra_options={"BlockSize": 2})
    result = ModelQuantizer(config).quantize_model(model, None, Reader(data))
    assert not any(item.name == "block_size" and item.i for node in result.graph.node for item in node.attribute)
    for have, want in zip(run(result, data), run(model, data), strict=True):
        assert np.mean((have - want) ** 2) < 0.1 * np.mean(want**2)
