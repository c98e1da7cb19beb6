"""Q/DQ of 4 and 16 bits: as onnxruntime's quantize_static makes them, and as ONNX defines them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization import QuantType, quantize_static
from reference.inner_tensors import inner_tensors
from small_models import Arrays, Weights, build, initializers, run, samples, separable_cnn

from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.weight_params import WeightParams

SIGNED = {QuantType.QInt8, QuantType.QInt16, QuantType.QInt4}
ACTIVATIONS = [QuantType.QUInt8, QuantType.QInt8, QuantType.QUInt16, QuantType.QInt16]
WEIGHTS = [*ACTIVATIONS, QuantType.QInt4, QuantType.QUInt4]
EIGHT_BITS = {QuantType.QUInt8, QuantType.QInt8}
NEW = [(a, w) for a in ACTIVATIONS for w in WEIGHTS if not {a, w} <= EIGHT_BITS]
# Where the scales are as fine as that, onnxruntime's quantizer clips biases: see the test of biases that overflow.
CLIPPED = [(a, QuantType.QUInt16) for a in (QuantType.QUInt16, QuantType.QInt16)]


def options_of(activation: QuantType, weight: QuantType, *, per_channel: bool = False) -> QdqOptions:
    return QdqOptions(
        activation_type=activation,
        weight_type=weight,
        activation_symmetric=activation in SIGNED,
        weight_symmetric=weight in SIGNED or per_channel,  # onnxruntime's quantizer has no others per channel
        per_channel=per_channel,
    )


def quantized(
    model: onnx.ModelProto, data: Arrays, options: QdqOptions, weights: dict[str, WeightParams] | None = None
) -> onnx.ModelProto:
    names = calibration_tensors(model, options)
    values = {**data, **inner_tensors(model, data, [name for name in names if name not in data])}
    ranges = {name: (float(values[name].min()), float(values[name].max())) for name in names}
    result = insert_qdq(model, ranges, weights or {}, options)
    onnx.checker.check_model(result)
    return result


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize(("activation", "weight"), [pair for pair in NEW if pair not in CLIPPED], ids=str)
def test_equal_to_quantize_static_to_the_bit(
    activation: QuantType, weight: QuantType, per_channel: bool, tmp_path: Path
):
    model = prepare(separable_cnn(), opset=21)
    data, options = samples(model, 4), options_of(activation, weight, per_channel=per_channel)
    ours = quantized(model, data, options)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # onnxruntime's quantizer changes its input
    quantize_static(
        copy,
        tmp_path / "q.onnx",
        SimpleNamespace(get_next=iter([data, None]).__next__),
        op_types_to_quantize=list(options.op_types),
        per_channel=per_channel,
        activation_type=activation,
        weight_type=weight,
        extra_options={
            "ActivationSymmetric": options.activation_symmetric,
            "WeightSymmetric": options.weight_symmetric,
        },
    )
    theirs = onnx.load(tmp_path / "q.onnx")
    expected, actual = initializers(theirs), initializers(ours)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name].astype(np.float64), value.astype(np.float64), err_msg=name)
    assert {n.name: n for n in ours.graph.node} == {n.name: n for n in theirs.graph.node}


@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
@pytest.mark.parametrize(("activation", "weight"), NEW, ids=str)
def test_onnx_and_onnxruntime_compute_the_same_before_and_after_opset_21(
    activation: QuantType, weight: QuantType, per_channel: bool
):
    """In the default domain, checked with ONNX's reference; before it in onnxruntime's."""
    options, outputs = options_of(activation, weight, per_channel=per_channel), {}
    for opset in (17, 21):
        model = prepare(separable_cnn(), opset=opset)
        data = samples(model, 4)
        result = quantized(model, data, options)
        domains = {
            node.domain
            for node in result.graph.node
            if node.op_type.endswith("quantizeLinear") or node.op_type == "QuantizeLinear"
        }
        assert domains == ({"com.microsoft"} if opset == 17 else {""})
        (outputs[opset],) = run(result, data)
        if opset == 21:
            (expected,) = ReferenceEvaluator(result).run(None, data)
            step = float(initializers(result)["y_scale"])
            assert np.abs(outputs[21] - expected).max() <= 1.01 * step
            (optimised,) = run(result, data, optimise=True)
            assert np.abs(optimised - expected).max() < 0.02 * np.ptp(expected)
    np.testing.assert_array_equal(outputs[17], outputs[21])


NUMPY = {
    QuantType.QInt4: ml_dtypes.int4, QuantType.QUInt4: ml_dtypes.uint4, QuantType.QInt8: np.int8,
    QuantType.QUInt8: np.uint8, QuantType.QInt16: np.int16, QuantType.QUInt16: np.uint16,
}  # fmt: skip


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(list(NUMPY)),
    st.tuples(st.integers(1, 7), st.integers(1, 5)),
    st.booleans(),
    st.floats(0.3, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_given_parameters_are_used_as_they_are(
    seed: int, kind: QuantType, shape: tuple[int, int], per_channel: bool, factor: float
):
    """q = clip(round(w / scale) + zero point), odd counts of elements included."""
    rng = np.random.default_rng(seed)
    limits = ml_dtypes.iinfo(NUMPY[kind])
    low, high = int(limits.min), int(limits.max)
    weight = rng.standard_normal(shape).astype(np.float32)
    count = shape[1] if per_channel else 1
    scale = (factor * np.abs(weight).max() / (high - low) * rng.uniform(0.5, 2, count)).astype(np.float32)
    symmetric = kind in SIGNED
    zero = np.zeros(count, np.int32) if symmetric else rng.integers(low, high + 1, count, dtype=np.int32)
    model = prepare(
        build(f"(float[N,{shape[0]}] x) => (float[N,{shape[1]}] y) {{ y = MatMul(x, w) }}", w=weight), opset=21
    )
    params = {"w": WeightParams(scale, zero, 1 if per_channel else None)}
    result = initializers(quantized(model, samples(model, 3), options_of(QuantType.QUInt8, kind), params))
    lowest = -high if symmetric and limits.bits >= 8 else low  # the least one is left out
    expected = np.clip(np.rint(weight / scale) + zero, lowest, high)
    assert result["w_quantized"].dtype == result["w_zero_point"].dtype == NUMPY[kind]
    np.testing.assert_array_equal(result["w_quantized"].astype(np.int32), expected)
    np.testing.assert_array_equal(np.atleast_1d(result["w_scale"]), scale)
    np.testing.assert_array_equal(np.atleast_1d(result["w_zero_point"]).astype(np.int32), zero)


@pytest.mark.parametrize("kind", WEIGHTS, ids=str)
@pytest.mark.parametrize("view", ["", "MaxPool<kernel_shape=[1,1]>"], ids=["", "behind MaxPool"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_a_weight_scale_grows_where_the_bias_would_overflow(kind: QuantType, view: str, per_channel: bool):
    """A channel that is nearly dead has a tiny scale, and its bias would not fit into 32 bits."""
    w = Weights(0)
    weight = 1e-9 * w.conv(4, 3, 1, 1)
    text = f"t = {view}(x) y = Conv(t, w, b)" if view else "y = Conv(x, w, b)"
    model = prepare(build(f"(float[N,3,4,4] x) => (float[N,4,4,4] y) {{ {text} }}", w=weight, b=np.full(4, 3.0)))
    result = quantized(model, samples(model, 4), options_of(QuantType.QUInt16, kind, per_channel=per_channel))
    values = initializers(result)
    bias = values["b_quantized"].astype(np.float64) * values["b_quantized_scale"]
    np.testing.assert_allclose(bias, 3.0, rtol=1e-6)


def test_a_model_of_4_bits_is_half_as_large():
    model = prepare(build("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", w=np.eye(64)), opset=21)
    raw = {}
    for kind in (QuantType.QInt4, QuantType.QInt8, QuantType.QInt16):
        result = quantized(model, samples(model, 3), options_of(QuantType.QUInt8, kind))
        (tensor,) = [t for t in result.graph.initializer if t.name == "w_quantized"]
        assert numpy_helper.to_array(tensor).shape == (64, 64)
        raw[kind] = len(tensor.raw_data)
    assert raw == {QuantType.QInt4: 2048, QuantType.QInt8: 4096, QuantType.QInt16: 8192}
