from __future__ import annotations

import logging
from collections import Counter
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_static
from small_models import run

from quark.onnx.errors import ModelError
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.weight_params import WeightParams

UINT8, PER_CHANNEL = QdqOptions(), QdqOptions(per_channel=True)
INT8 = QdqOptions(activation_type=QuantType.QInt8, activation_symmetric=True)


def model(text: str, *, opset: int = 17, **initializers: np.ndarray) -> onnx.ModelProto:
    """A prepared model from ONNX's text form; `[name]` before a node names it."""
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    for name, value in initializers.items():
        parsed.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return prepare(parsed)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def network(opset: int = 17) -> onnx.ModelProto:
    """One of most things: grouped and dense Conv, Gemm, Relu, Clip, branches, pooling, views, Softmax."""
    return model(
        """(float[N,3,12,12] x) => (float[N,5] y, float[N,8] features) {
            [stem] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
            [relu] b = Relu(a)
            [depthwise] c = Conv<group=8, pads=[1,1,1,1], strides=[2,2]>(b, w2, b2)
            [clip] d = Clip(c, low, high)
            [pointwise] e = Conv(d, w3)
            [pool] f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
            [add] h = Add(e, f)
            [relu2] i = Relu(h)
            [mean] j = GlobalAveragePool(i)
            [view] features = Flatten(j)
            [hidden] k = Gemm<transB=1>(features, w4, b4)
            [relu3] l = Relu(k)
            [project] m = MatMul(l, w5)
            [softmax] y = Softmax(m)
        }""",
        opset=opset,
        w1=normal(8, 3, 3, 3),
        b1=normal(8),
        w2=normal(8, 1, 3, 3),
        b2=normal(8, seed=1),
        low=0.0,
        high=6.0,
        w3=normal(8, 8, 1, 1),
        w4=normal(16, 8),
        b4=normal(16),
        w5=normal(16, 5),
    )


def feeds_of(model: onnx.ModelProto, batch: int = 4) -> dict[str, np.ndarray]:
    return {
        v.name: normal(*(d.dim_value or batch for d in v.type.tensor_type.shape.dim)).astype(np.float32)
        for v in model.graph.input
    }


def ranges_of(model: onnx.ModelProto, names: list[str]) -> dict[str, tuple[float, float]]:
    """The minimum and maximum of each tensor on `feeds_of(model)`."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in (*probe.graph.input, *probe.graph.output)}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    feeds = feeds_of(model)
    values = feeds | dict(zip([o.name for o in probe.graph.output], run(probe, feeds), strict=True))
    return {name: (float(values[name].min()), float(values[name].max())) for name in names}


def quantized(
    model: onnx.ModelProto, options: QdqOptions = UINT8, params: dict[str, WeightParams] | None = None
) -> onnx.ModelProto:
    before = model.SerializeToString()
    result = insert_qdq(model, ranges_of(model, calibration_tensors(model, options)), params or {}, options)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    return result


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


OPTIONS = {
    "uint8": UINT8,
    "int8 symmetric": INT8,
    "int8 asymmetric": QdqOptions(activation_type=QuantType.QInt8),
    "per channel": PER_CHANNEL,
    "uint8 weights": QdqOptions(weight_type=QuantType.QUInt8, weight_symmetric=False),
    "few": QdqOptions(op_types=("Conv", "Gemm"), excluded_nodes=frozenset({"pointwise"})),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_equal_to_quantize_static_to_the_bit(options, tmp_path):
    check_against_quantize_static(network(), options, tmp_path)


READERS = ("a = Clip(v, low, high) b = Relu(a)", "c = Relu(v)", "d = Conv(v, w)")


@pytest.mark.parametrize("readers", list(permutations(READERS)))
@pytest.mark.parametrize("view", ["Transpose<perm=[0,1,3,2]>", "MaxPool<kernel_shape=[1,1]>"])
def test_an_activation_beside_other_readers_of_a_tensor_that_shares_parameters(view, readers, tmp_path):
    nodes = f"h = Conv(x, w) v = {view}(h) {' '.join(readers)} y = Concat<axis=1>(b, c, d)"
    text, weight = f"(float[N,8,5,5] x) => (float[N,24,5,5] y) {{ {nodes} }}", normal(8, 8, 1, 1)
    for options in (UINT8, INT8):
        check_against_quantize_static(model(text, w=weight, low=-1.0, high=2.0), options, tmp_path)


def check_against_quantize_static(float_model, options, tmp_path):
    ours = quantized(float_model, options)
    reader = SimpleNamespace(get_next=iter([feeds_of(float_model), None]).__next__)
    copy = onnx.ModelProto()
    copy.CopyFrom(float_model)
    quantize_static(
        copy,
        tmp_path / "q.onnx",
        reader,
        op_types_to_quantize=list(options.op_types),
        nodes_to_exclude=list(options.excluded_nodes),
        per_channel=options.per_channel,
        activation_type=options.activation_type,
        weight_type=options.weight_type,
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
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert nodes(ours) == nodes(theirs)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_result_is_close_to_the_float_model_with_and_without_optimization(options, opset):
    float_model = network(opset)
    result = quantized(float_model, options)
    assert result.opset_import == float_model.opset_import
    assert (result.graph.input, result.graph.output) == (float_model.graph.input, float_model.graph.output)
    feeds = feeds_of(float_model)
    for expected, plain, optimized in zip(
        run(float_model, feeds), run(result, feeds), run(result, feeds, optimise=True), strict=True
    ):
        span = np.ptp(expected)
        assert np.abs(plain - expected).max() < 0.1 * span
        assert np.abs(optimized - plain).max() < 0.02 * span


def test_names():
    names = nodes(quantized(network()))
    assert {
        "stem",
        "x_QuantizeLinear",
        "x_DequantizeLinear",
        "w1_DequantizeLinear",
        "b1_DequantizeLinear",
    } <= names.keys()
    assert names["stem"].input == ["x_DequantizeLinear_Output", "w1_DequantizeLinear_Output", "b1"]
    assert names["w1_DequantizeLinear"].input == ["w1_quantized", "w1_scale", "w1_zero_point"]
    assert names["features_DequantizeLinear"].output == ["features"]


def test_activations_go_if_asymmetric_and_stay_if_symmetric():
    def count(options):
        return Counter(node.op_type for node in quantized(network(), options).graph.node)

    assert count(UINT8)["Relu"] == count(UINT8)["Clip"] == 0
    assert (count(INT8)["Relu"], count(INT8)["Clip"]) == (3, 1)


def search_params(weight: np.ndarray, axis: int | None, factor: float = 0.4) -> WeightParams:
    """Scales that clip the largest weights."""
    other = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    scale = np.atleast_1d(np.abs(weight).max(axis=other)) * factor / 127
    return WeightParams(scale.astype(np.float32), np.zeros(scale.shape, np.int8), axis)


def along(values: np.ndarray, axis: int | None, ndim: int) -> np.ndarray:
    return values if axis is None else values.reshape([-1 if i == axis else 1 for i in range(ndim)])


@pytest.mark.parametrize("per_channel", [False, True])
def test_given_weight_params_are_used_as_they_are(per_channel):
    float_model = network()
    axes = {"w1": 0, "w2": 0, "w3": 0, "w4": 0, "w5": 1}
    weights = initializers(float_model)
    params = {name: search_params(weights[name], axis if per_channel else None) for name, axis in axes.items()}
    result = initializers(quantized(float_model, UINT8, params))
    for name, param in params.items():
        expected_scale = param.scale if per_channel else param.scale[0]
        np.testing.assert_array_equal(result[f"{name}_scale"], expected_scale, strict=True)
        assert result[f"{name}_scale"].dtype == np.float32
        assert not result[f"{name}_zero_point"].any()
        scale = along(param.scale, param.axis, weights[name].ndim)
        expected = np.clip(np.rint(weights[name] / scale), -127, 127)  # -128 is not used
        np.testing.assert_array_equal(result[f"{name}_quantized"], expected)
        assert expected.min() == -127
        assert result[f"{name}_quantized"].dtype == np.int8
    for bias, source, weight in (("b1", "x", "w1"), ("b2", "b", "w2"), ("b4", "features", "w4")):
        scale = result[f"{source}_scale"] * result[f"{weight}_scale"]
        np.testing.assert_array_equal(result[f"{bias}_quantized_scale"], np.atleast_1d(scale))
        expected = np.rint(weights[bias].astype(np.float64) / scale.astype(np.float64))
        np.testing.assert_array_equal(result[f"{bias}_quantized"], expected)
        assert result[f"{bias}_quantized"].dtype == np.int32


def test_asymmetric_weight_params_use_the_whole_type():
    weight = normal(8, 8)
    float_model = model("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", w=weight)
    options = QdqOptions(weight_type=QuantType.QUInt8, weight_symmetric=False)
    params = {"w": WeightParams(np.float32([0.01]), np.uint8([100]))}
    result = initializers(quantized(float_model, options, params))
    expected = np.clip(np.rint(weight.astype(np.float32) / np.float32(0.01)) + 100, 0, 255)
    np.testing.assert_array_equal(result["w_quantized"], expected)
    assert result["w_zero_point"] == 100
    options = QdqOptions(weight_symmetric=False)
    result = initializers(quantized(float_model, options, {"w": WeightParams(np.float32([0.01]), np.int8([3]))}))
    assert result["w_quantized"].min() == -128


@given(st.integers(-(2**31), 2**31 - 1), st.floats(1e-3, 3.0), st.booleans())
@settings(max_examples=20, deadline=None)
def test_rounding_is_half_to_even_of_the_float32_quotient(seed, factor, per_channel):
    weight = np.random.default_rng(seed % 2**32).standard_normal((6, 5)).astype(np.float32)
    weight[0, :] = np.float32(0.5) * np.arange(-2, 3)  # ties, for a scale of one
    params = search_params(weight, 1 if per_channel else None, factor)
    if seed % 2:
        params = WeightParams(np.ones_like(params.scale), params.zero_point, params.axis)
    float_model = model("(float[N,6] x) => (float[N,5] y) { y = MatMul(x, w) }", w=weight)
    result = initializers(quantized(float_model, UINT8, {"w": params}))
    expected = np.clip(np.rint(weight / along(params.scale, params.axis, 2)), -127, 127)
    np.testing.assert_array_equal(result["w_quantized"], expected)


def test_a_weight_of_two_nodes_is_quantized_once_and_their_bias_twice():
    float_model = model(
        "(float[N,8] x) => (float[N,8] y) { h = Gemm(x, w, c) r = Relu(h) y = Gemm(r, w, c) }",
        w=normal(8, 8),
        c=normal(8),
    )
    result = quantized(float_model, UINT8, {"w": search_params(normal(8, 8), None)})
    readers = [node for node in result.graph.node if "w_DequantizeLinear_Output" in node.input]
    assert len(readers) == 2
    scales = [
        v for name, v in initializers(result).items() if name.startswith("c") and name.endswith("quantized_scale")
    ]
    assert len(scales) == 2
    assert scales[0] != scales[1]


def test_weight_scale_grows_where_the_bias_would_overflow():
    float_model = model("(float[N,8] x) => (float[N,8] y) { y = Gemm(x, w, c) }", w=normal(8, 8), c=np.full(8, 1e6))
    tiny = WeightParams(np.float32([1e-6]), np.int8([0]))
    result = initializers(quantized(float_model, UINT8, {"w": tiny}))
    assert result["w_scale"] > 1e-6
    np.testing.assert_allclose(result["c_quantized"] * result["c_quantized_scale"].astype(np.float64), 1e6, rtol=1e-6)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_calibration_tensors_are_enough_and_none_is_too_much(options):
    float_model = network()
    names = calibration_tensors(float_model, options)
    ranges = dict.fromkeys(names, (-1.0, 1.0))
    whole = initializers(insert_qdq(float_model, ranges, {}, options))
    for name in names:
        wider = initializers(insert_qdq(float_model, ranges | {name: (-2.0, 2.0)}, {}, options))
        assert any(not np.array_equal(wider[key], whole[key]) for key in whole), f"the range of {name} is not used"
        with pytest.raises(ModelError, match="param"):
            insert_qdq(float_model, {key: value for key, value in ranges.items() if key != name}, {}, options)


LAYERS = {
    "conv": ("Conv<pads=[1,1,1,1]>", [normal(8, 8, 3, 3) / 8, normal(8)]),
    "depthwise": ("Conv<group=8>", [normal(8, 1, 1, 1)]),
    "relu": ("Relu", []),
    "clip": ("Clip", [np.array(-1.0), np.array(2.0)]),
    "clip above": ("Clip", [np.array(0.5), np.array(2.0)]),
    "mul": ("Mul", [normal(1, 8, 1, 1)]),
    "pool": ("MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>", []),
    "sigmoid": ("Sigmoid", []),
    "softmax": ("Softmax<axis=1>", []),
    "transpose": ("Transpose<perm=[0,1,3,2]>", []),
}


@given(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7),
    st.sampled_from(sorted(OPTIONS)),
    st.sampled_from([13, 17]),
    st.data(),
)
@settings(max_examples=40, deadline=None)
def test_random_networks_are_quantized_closely(layers, options, opset, data):
    lines, constants, tensors = [], {}, ["x"]
    for i, layer in enumerate(layers):
        op, values = LAYERS[layer]
        source = data.draw(st.sampled_from(tensors[-3:]), label="input")
        parameters = [f"c{i}_{k}" for k in range(len(values))]
        constants.update(zip(parameters, values, strict=True))
        lines.append(f"t{i} = {op}({', '.join([source, *parameters])})")
        tensors.append(f"t{i}")
    early = data.draw(st.sampled_from(tensors[1:]), label="output")
    float_model = model(
        f"(float[N,8,5,5] x) => (float[N,8,5,5] y, float[N,8,5,5] {early}) "
        f"{{ {' '.join(lines)} y = Add({tensors[-1]}, x) }}",
        opset=opset,
        **constants,
    )
    result = quantized(float_model, OPTIONS[options])
    feeds = feeds_of(float_model)
    for expected, actual in zip(run(float_model, feeds), run(result, feeds), strict=True):
        assert np.sqrt(((actual - expected) ** 2).mean()) < 0.15 * np.sqrt((expected**2).mean())


def test_calibration_tensors_of_the_network():
    assert calibration_tensors(network(), UINT8) == ["x", "b", "d", "e", "i", "j", "features", "l", "m"]
    # A symmetric Relu or Clip stays, and so does Q/DQ before it, with the range of what comes after.
    assert calibration_tensors(network(), INT8) == calibration_tensors(network(), UINT8)
    assert calibration_tensors(network(), QdqOptions(excluded_nodes=frozenset({"relu"})))[:3] == [
        "x",
        "a",
        "b",
    ]
    assert calibration_tensors(network(), QdqOptions(op_types=("Gemm",))) == ["features", "k"]


def test_excluded_nodes_stay_float():
    result = quantized(network(), QdqOptions(excluded_nodes=frozenset({"stem", "hidden"})))
    assert {"w1", "b1", "w4"} <= initializers(result).keys()
    assert nodes(result)["stem"].input == ["x", "w1", "b1"]


@pytest.mark.parametrize(
    ("activation", "bounds"),
    [
        ("Clip(h, low, high)", {"low": 0.5, "high": 2.0}),
        ("Clip(h, low, high)", {"low": -2.0, "high": -0.5}),
        ("Clip(h, low)", {"low": 0.25}),
    ],
)
def test_a_clip_that_no_quantizer_can_do_stays(activation, bounds):
    float_model = model(
        f"(float[N,8] x) => (float[N,8] y) {{ h = MatMul(x, w) [clip] y = {activation} }}",
        w=normal(8, 8),
        **bounds,
    )
    result = quantized(float_model)
    assert "clip" in nodes(result)
    feeds = feeds_of(float_model)
    (expected,), (actual,) = run(float_model, feeds), run(result, feeds, optimise=True)
    assert np.abs(actual - expected).max() < 0.1 * np.ptp(expected) + 0.02


def test_a_clip_with_a_computed_bound_stays():
    float_model = model(
        "(float[N,8] x, float high) => (float[N,8] y) { h = MatMul(x, w) [clip] y = Clip(h, low, high) }",
        w=normal(8, 8),
        low=0.0,
    )
    names = calibration_tensors(float_model, UINT8)
    assert "clip" in nodes(insert_qdq(float_model, dict.fromkeys(names, (-9.0, 9.0)), {}, UINT8))


@pytest.mark.parametrize("options", [UINT8, INT8], ids=["asymmetric", "symmetric"])
def test_an_output_before_a_relu_keeps_its_negative_values(options):
    float_model = model(
        "(float[N,8] x) => (float[N,8] h, float[N,8] y) { h = MatMul(x, w) r = Relu(h) y = MatMul(r, w) }",
        w=normal(8, 8),
    )
    result = quantized(float_model, options)
    feeds = feeds_of(float_model)
    for expected, actual in zip(run(float_model, feeds), run(result, feeds), strict=True):
        assert np.abs(actual - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.parametrize("read", ["h", "r"], ids=["before the activation", "behind it"])
def test_a_tensor_that_a_subgraph_reads_stays(read: str):
    then, otherwise = (
        onnx.parser.parse_graph(f"branch () => (float[N,8] b) {{ b = {op}({read}, {read}) }}") for op in ("Add", "Sub")
    )
    parsed = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,8] x, bool go) => (float[N,8] y, float[N,8] z) '
        "{ h = MatMul(x, w) r = Relu(h) z = MatMul(r, w) }"
    )
    parsed.graph.initializer.append(numpy_helper.from_array(normal(8, 8).astype(np.float32), "w"))
    parsed.graph.node.append(helper.make_node("If", ["go"], ["y"], then_branch=then, else_branch=otherwise))
    float_model = prepare(parsed)
    names = calibration_tensors(float_model, UINT8)
    result = insert_qdq(float_model, dict.fromkeys(names, (-20.0, 20.0)), {}, UINT8)
    assert "Relu" in {node.op_type for node in result.graph.node}
    feeds = {"x": normal(3, 8).astype(np.float32), "go": np.array(True)}
    for expected, actual in zip(run(float_model, feeds), run(result, feeds), strict=True):
        assert np.abs(actual - expected).max() < 0.2 * np.ptp(expected)


def test_consecutive_activations_all_go():
    float_model = model(
        "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) a = Relu(h) b = Clip(a, low, high) y = Relu(b) }",
        w=normal(8, 8),
        low=-1.0,
        high=2.0,
    )
    assert calibration_tensors(float_model, UINT8) == ["x", "y"]
    assert {node.op_type for node in quantized(float_model).graph.node} == {
        "QuantizeLinear",
        "DequantizeLinear",
        "MatMul",
    }


def test_softmax_has_the_range_zero_to_one():
    result = initializers(quantized(network()))
    assert result["y_scale"] == np.float32(1 / 255)


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose_per_channel(group):
    float_model = model(
        f"(float[N,4,5,5] x) => (float[N,{4 * group},7,7] y) {{ y = ConvTranspose<group={group}>(x, w, c) }}",
        w=normal(4, 4, 3, 3),
        c=normal(4 * group),
    )
    result = quantized(float_model, PER_CHANNEL)
    assert initializers(result)["w_scale"].shape == ((4,) if group == 1 else ())
    feeds = feeds_of(float_model)
    assert np.abs(run(result, feeds)[0] - run(float_model, feeds)[0]).max() < 0.5


@pytest.mark.parametrize(("shape", "output"), [((5, 6, 8), "5,4,8"), ((6,), "5,4")])
def test_matmul_not_by_a_matrix_has_one_scale(shape, output):
    float_model = model(f"(float[5,4,6] x) => (float[{output}] y) {{ y = MatMul(x, w) }}", w=normal(*shape))
    result = quantized(float_model, PER_CHANNEL)
    assert initializers(result)["w_scale"].shape == ()
    feeds = feeds_of(float_model)
    np.testing.assert_allclose(run(result, feeds, optimise=True)[0], run(result, feeds)[0], atol=0.1)


@pytest.mark.parametrize("limits", [(float("nan"), 1.0), (0.0, float("inf")), (1.0, -1.0)])
def test_a_range_that_is_none(limits):
    with pytest.raises(ModelError, match="'x' has no finite range"):
        insert_qdq(network(), {"x": limits}, {}, UINT8)


def test_params_that_do_not_fit_the_weight():
    float_model = network()
    ranges = dict.fromkeys(calibration_tensors(float_model, UINT8), (-1.0, 1.0))
    three = WeightParams(np.ones(3, np.float32), np.zeros(3, np.int8), axis=0)
    with pytest.raises(ModelError, match="w1"):
        insert_qdq(float_model, ranges, {"w1": three}, UINT8)
    with pytest.raises(ModelError, match="absent"):
        insert_qdq(float_model, ranges, {"absent": search_params(normal(3, 3), None)}, UINT8)


def test_onnxruntime_logs_through_our_logger(caplog):
    float_model = model("(float[N,8] x, float[8] c) => (float[N,8] y) { y = Gemm(x, w, c) }", w=normal(8, 8))
    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    quantized(float_model)
    assert (root.handlers, root.filters) == (handlers, filters)
    assert [record.name for record in caplog.records if "not constant" in record.getMessage()] == [
        "quark.onnx.qdq.insert_qdq"
    ]
