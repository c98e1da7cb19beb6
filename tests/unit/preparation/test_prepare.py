from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.preparation.prepare import prepare


def normal(*shape: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


BATCH_NORM = {
    "gamma": np.linspace(0.5, 1.5, 8),
    "beta": normal(8, seed=1),
    "mean": normal(8, seed=2),
    "var": np.linspace(1.4, 0.6, 8),
}


def model(text: str, *, opset: int = 17, **initializers: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form; `[name]` before a node names it; initializers are cast to float32."""
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}')
    for name, value in initializers.items():
        parsed.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    return parsed


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def random_feeds(model: onnx.ModelProto, batch: int = 2) -> dict[str, np.ndarray]:
    constants = {tensor.name for tensor in model.graph.initializer}
    rng = np.random.default_rng(0)
    return {
        value.name: rng.standard_normal([d.dim_value or batch for d in value.type.tensor_type.shape.dim]).astype("f")
        for value in model.graph.input
        if value.name not in constants
    }


def prepared_and_checked(original: onnx.ModelProto) -> onnx.ModelProto:
    """Prepare, and check everything that holds for every model."""
    before = original.SerializeToString()
    result = prepare(original)
    assert original.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    feeds = random_feeds(original)
    for expected, actual in zip(run(original, **feeds), run(result, **feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    constants = {tensor.name for tensor in original.graph.initializer}
    assert [i for i in original.graph.input if i.name not in constants] == list(result.graph.input)
    assert original.graph.output == result.graph.output
    assert next(entry.version for entry in result.opset_import if not entry.domain) >= 13
    names = [node.name for node in result.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert "Constant" not in ops(result)
    return result


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def names(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node]


NORM = "(h, gamma, beta, mean, var)"


@pytest.mark.parametrize(
    ("op", "text", "constants"),
    [
        (
            "Conv",
            "(float[N,3,8,8] x) => (float[N,8,6,6] y) {{ [a] h = Conv(x, w) [b] y = {bn} }}",
            {"w": (8, 3, 3, 3)},
        ),
        (
            "Conv",
            "(float[N,8,9] x) => (float[N,8,7] y) {{ [a] h = Conv<group=8>(x, w, c) [b] y = {bn} }}",
            {"w": (8, 1, 3), "c": (8,)},
        ),
        (
            "ConvTranspose",
            "(float[N,4,5,5] x) => (float[N,8,7,7] y) {{ [a] h = ConvTranspose<group=2>(x, w) [b] y = {bn} }}",
            {"w": (4, 4, 3, 3)},
        ),
        (
            "Gemm",
            "(float[N,6] x) => (float[N,8] y) {{ [a] h = Gemm(x, w, c) [b] y = {bn} }}",
            {"w": (6, 8), "c": (8,)},
        ),
        (
            "Gemm",
            "(float[N,6] x) => (float[N,8] y) {{ [a] h = Gemm<alpha=0.5, beta=3.0, transB=1>(x, w, c) [b] y = {bn} }}",
            {"w": (8, 6), "c": (1, 8)},
        ),
        ("Gemm", "(float[N,6] x) => (float[N,8] y) {{ [a] h = Gemm(x, w) [b] y = {bn} }}", {"w": (6, 8)}),
        (
            "Gemm",
            "(float[N,6] x) => (float[N,8] y) {{ [a] h = Gemm<alpha=0.5, beta=0.0>(x, w) [b] y = {bn} }}",
            {"w": (6, 8)},
        ),
        ("Gemm", "(float[N,6] x) => (float[N,8] y) {{ [a] h = MatMul(x, w) [b] y = {bn} }}", {"w": (6, 8)}),
        (
            "Gemm",
            "(float[N,6] x) => (float[N,8] y) {{ [a] m = MatMul(x, w) [s] h = Add(c, m) [b] y = {bn} }}",
            {"w": (6, 8), "c": (8,)},
        ),
    ],
    ids=[
        "Conv",
        "depthwise Conv1d",
        "grouped ConvTranspose",
        "Gemm",
        "Gemm factors",
        "no bias",
        "no bias, and a factor of it",
        "MatMul",
        "MatMul Add",
    ],
)
def test_batch_normalization_goes_into_the_layer_before_it(op, text, constants):
    text = text.format(bn=f"BatchNormalization<epsilon=0.01>{NORM}")
    original = model(text, **{name: normal(*shape) for name, shape in constants.items()}, **BATCH_NORM)
    result = prepared_and_checked(original)
    assert ops(result) == [op]
    assert names(result) == ["a"]  # so that the user can exclude it by the name it had


@pytest.mark.parametrize(
    "text",
    [
        """(float[N,1] x) => (float[N,1,1] y, float[1,N,1] z) {
            a = Sigmoid(x) b = Reshape(a, shape) c = Reshape(b, shape)
            y = Reshape(c, shape) z = Transpose<perm = [2, 0, 1]>(c)
        }""",
        """(float[N,1] x) => (float[N,1,1] y, float[N,1,1] z) {
            a = Add(x, x) b = Reshape(a, shape) c = Reshape(b, shape) y = Sigmoid(c) z = Transpose<perm = [0, 1, 2]>(b)
        }""",
    ],
)
def test_reshapes_of_reshapes_that_are_read_elsewhere(text: str):
    original = model(text)
    original.graph.initializer.append(numpy_helper.from_array(np.int64([-1, 1, 1]), "shape"))
    feeds = random_feeds(original)
    for wanted, have in zip(run(original, **feeds), run(prepare(original), **feeds), strict=True):
        np.testing.assert_allclose(have, wanted, rtol=1e-5)


def test_batch_normalization_stays_where_its_input_is_needed():
    text = f"(float[N,6] x) => (float[N,8] y, float[N,8] h) {{ h = Gemm(x, w) y = BatchNormalization{NORM} }}"
    result = prepared_and_checked(model(text, w=normal(6, 8), **BATCH_NORM))
    assert ops(result) == ["Gemm", "BatchNormalization"]


def test_matmul_and_add_become_gemm_only_where_gemm_can_do_it():
    def ops_of(text, **shapes):
        return ops(prepared_and_checked(model(text, **{name: normal(*s) for name, s in shapes.items()})))

    matrix = "(float[N,6] x) => (float[N,8] y) { h = MatMul(x, w) y = Add(h, c) }"
    assert ops_of(matrix, w=(6, 8), c=(8,)) == ["Gemm"]
    assert ops_of(matrix, w=(6, 8), c=(1, 8)) == ["Gemm"]
    assert ops_of(matrix, w=(6, 8), c=(1,)) == ["MatMul", "Add"]
    batch = "(float[N,4,6] x) => (float[N,4,8] y) { h = MatMul(x, w) y = Add(h, c) }"
    assert ops_of(batch, w=(6, 8), c=(8,)) == ["MatMul", "Add"]
    residual = "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) y = Add(h, x) }"
    assert ops_of(residual, w=(8, 8)) == ["MatMul", "Add"]
    double = "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) y = Add(h, h) }"
    assert ops_of(double, w=(8, 8)) == ["MatMul", "Add"]


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1,), (), (1, 1)])
@pytest.mark.parametrize("trans_b", [0, 1])
def test_gemm_has_unit_factors_and_a_bias_vector(shape, trans_b):
    text = f"(float[N,6] x) => (float[N,8] y) {{ y = Gemm<alpha=0.5, beta=-2.0, transB={trans_b}>(x, w, c) }}"
    result = prepared_and_checked(model(text, w=normal(6, 8).T if trans_b else normal(6, 8), c=normal(*shape)))
    (node,) = result.graph.node
    assert {item.name for item in node.attribute} <= {"transA", "transB"}
    assert [list(t.dims) for t in result.graph.initializer if t.name == node.input[2]] == [[8]]


@pytest.mark.parametrize("shape", [(2, 8), (2, 1)])
def test_gemm_bias_that_differs_by_row_becomes_add(shape):
    text = "(float[2,6] x) => (float[2,8] y) { [a] y = Gemm<alpha=0.5, beta=-2.0>(x, w, c) }"
    assert ops(prepared_and_checked(model(text, w=normal(6, 8), c=normal(*shape)))) == ["Gemm", "Add"]


def test_gemm_bias_times_zero_goes():
    result = prepared_and_checked(
        model("(float[N,6] x) => (float[N,8] y) { y = Gemm<beta=0.0>(x, w, c) }", w=normal(6, 8), c=normal(8))
    )
    assert len(result.graph.node[0].input) == 2


def test_folding_leaves_other_readers_of_a_constant_alone():
    text = "(float[N,8] x) => (float[N,8] y, float[N,8] z) { y = Gemm<alpha=2.0, beta=3.0>(x, w, c) z = Gemm(x, w, c) }"
    prepared_and_checked(model(text, w=normal(8, 8), c=normal(8)))


def test_a_shared_bias_is_copied_a_shared_weight_is_not():
    text = "(float[N,8] x) => (float[N,8] y) { h = Gemm(x, w, c) r = Relu(h) y = Gemm(r, w, c) }"
    result = prepared_and_checked(model(text, w=normal(8, 8), c=normal(8)))
    first, _, second = result.graph.node
    assert first.input[1] == second.input[1]
    assert first.input[2] != second.input[2]


@pytest.mark.parametrize("op", ["InstanceNormalization(x, s, c)", "BatchNormalization(x, s, c, c, v)"])
def test_a_shared_bias_of_a_normalization_is_copied(op):
    mean = "m = ReduceMean<axes=[2], keepdims=0>(x)"
    text = f"(float[N,8,5] x) => (float[N,8,5] y, float[N,8] z) {{ y = {op} {mean} z = Add(m, c) }}"
    result = prepared_and_checked(model(text, s=normal(8), c=normal(8), v=np.ones(8)))
    first = next(node for node in result.graph.node if node.op_type in op)
    add = next(node for node in result.graph.node if node.op_type == "Add")
    assert first.input[2] not in (*first.input[3:], *add.input)


def test_equal_weights_stay_separate():
    weight = normal(8, 8)
    text = "(float[N,8] x) => (float[N,8] y) { h = Gemm(x, v) r = Relu(h) y = Gemm(r, w) }"
    first, _, second = prepared_and_checked(model(text, v=weight, w=weight)).graph.node
    assert first.input[1] != second.input[1]


def test_nodes_get_unique_names_and_keep_their_own():
    text = (
        "(float[N,8] x) => (float[N,8] y) "
        "{ a = Relu(x) [Relu_1] b = Abs(a) c = Relu(b) [twin] d = Abs(c) [twin] e = Exp(d) [z] y = Relu(e) }"
    )
    # onnxruntime refuses this model as it is, for its twins.
    assert names(prepare(model(text))) == ["Relu_0", "Relu_1", "Relu_2", "twin", "twin_0", "z"]


def test_names_that_onnxruntime_will_need_are_freed():
    text = (
        "(float[N,8] x) => (float[N,8] y) "
        "{ a = Mul(x, x_scale) a_scale = Add(a, a_zero_point) b = Mul(a, a_scale) y = Sub(b, far_scale) }"
    )
    original = model(text, x_scale=normal(8), a_zero_point=normal(8), far_scale=normal(8))
    result = prepared_and_checked(original)
    tensors = {t.name for t in result.graph.initializer} | {t for n in result.graph.node for t in n.output}
    assert not tensors & {"x_scale", "a_scale", "a_zero_point"}
    assert "far_scale" in tensors  # there is no tensor "far"


def test_inputs_outputs_and_metadata_stay():
    text = (
        "(float[batch,8] x, int64[rows] index, float[3] unused) => (float[rows,8] y, int64[rows] z) "
        "{ r = Relu(x) y = Gather(r, index) z = Identity(index) }"
    )
    original = model(text)
    helper.set_model_props(original, {"names": "cat, dog"})
    original.doc_string = "a model"
    result = prepare(original)
    assert (original.graph.input, original.graph.output) == (result.graph.input, result.graph.output)
    assert result.metadata_props == original.metadata_props
    assert result.doc_string == "a model"
    feeds = {"x": normal(3, 8).astype("f"), "index": np.array([2, 0]), "unused": np.zeros(3, "f")}
    for expected, actual in zip(run(original, **feeds), run(result, **feeds), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_initializers_that_are_inputs_are_inputs_no_more():
    original = model("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", w=normal(8, 8))
    original.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]))
    original.ir_version = 3
    assert [value.name for value in prepared_and_checked(original).graph.input] == ["x"]


def test_constant_nodes_become_initializers():
    weight = helper.make_tensor("value", TensorProto.FLOAT, [8, 8], normal(8, 8).ravel())
    original = model("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }")
    original.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    assert "w" in {tensor.name for tensor in prepared_and_checked(original).graph.initializer}


def test_types_of_onnxruntime_operators_are_known():
    text = (
        "(float[N,8] x) => (float[N,4] y, float[N,4] z) "
        "{ h = MatMul(x, w) g = com.microsoft.BiasGelu(h, c) y, t = Split<axis=1>(g) "
        "z = com.microsoft.QuickGelu(t) }"
    )
    result = prepared_and_checked(model(text, w=normal(8, 8), c=normal(8)))
    types = {value.name: value.type.tensor_type.elem_type for value in result.graph.value_info}
    assert types["g"] == types["t"] == TensorProto.FLOAT


def test_functions_are_inlined():
    original = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "mine": 1]>
        g (float[N,8] x) => (float[N,8] y) { y = mine.twice(x) }
        <opset_import: ["": 17], domain: "mine">
        twice (a) => (b) { c = Relu(a) b = Add(c, c) }"""
    )
    assert ops(prepared_and_checked(original)) == ["Relu", "Add"]


def test_subgraphs_see_the_tensors_around_them():
    then, otherwise = (
        onnx.parser.parse_graph(f"branch () => (float[N,8] b) {{ b = {op}(h, h_scale) }}") for op in ("Add", "Sub")
    )
    original = model(
        "(float[N,8] x, bool go) => (float[N,8] y) { h = Gemm<beta=2.0>(x, w, c) }", w=normal(8, 8), c=[1.5]
    )
    original.graph.initializer.append(numpy_helper.from_array(normal(8).astype("f"), "h_scale"))
    original.graph.node.append(helper.make_node("If", ["go"], ["y"], then_branch=then, else_branch=otherwise))
    result = prepare(original)
    x = normal(3, 8).astype("f")
    for go in (np.array(True), np.array(False)):
        np.testing.assert_allclose(run(result, x=x, go=go)[0], run(original, x=x, go=go)[0], rtol=1e-5)


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12])
def test_old_opsets_are_raised(opset):
    clip = "c = Clip<min=0.0, max=6.0>(b)" if opset < 11 else "c = Clip(b, low, high)"
    text = (
        "(float[N,3,8,8] x) => (float[N,1,8] y) "
        f"{{ a = Conv<pads=[1,1,1,1]>(x, w) b = BatchNormalization(a, gamma, beta, mean, var) {clip} "
        "d = Dropout(c) e = GlobalAveragePool(d) f = Squeeze<axes=[2,3]>(e) y = Unsqueeze<axes=[1]>(f) }"
    )
    bounds = {} if opset < 11 else {"low": 0.0, "high": 6.0}
    result = prepared_and_checked(model(text, opset=opset, w=normal(8, 3, 3, 3), **bounds, **BATCH_NORM))
    assert ops(result)[:2] == ["Conv", "Clip"]


def test_new_opsets_stay():
    result = prepared_and_checked(model("(float[N,8] x) => (float[N,8] y) { y = Gelu(x) }", opset=20))
    assert next(entry.version for entry in result.opset_import if not entry.domain) == 20


LAYERS = {
    "conv": lambda seed: ("Conv<pads=[1,1,1,1]>", [normal(8, 8, 3, 3, seed=seed) / 8, normal(8, seed=seed)]),
    "depthwise": lambda seed: ("Conv<group=8>", [normal(8, 1, 1, 1, seed=seed)]),
    "bn": lambda _: ("BatchNormalization", [*BATCH_NORM.values()]),
    "relu": lambda _: ("Relu", []),
    "clip": lambda _: ("Clip", [np.array(-1.0), np.array(2.0)]),
    "add": lambda seed: ("Add", [normal(8, 1, 1, seed=seed)]),
    "mul": lambda seed: ("Mul", [normal(1, 8, 1, 1, seed=seed)]),
    "pool": lambda _: ("MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>", []),
    "sigmoid": lambda _: ("Sigmoid", []),
    "identity": lambda _: ("Identity", []),
}


@given(
    st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=7),
    st.sampled_from([11, 13, 17]),
    st.data(),
)
@settings(max_examples=25, deadline=None)
def test_random_networks_compute_the_same(layers, opset, data):
    lines, constants, tensors = [], {}, ["x"]
    for i, layer in enumerate(layers):
        op, values = LAYERS[layer](i)
        source = data.draw(st.sampled_from(tensors), label="input")
        parameters = [f"c{i}_{k}" for k in range(len(values))]
        constants.update(zip(parameters, values, strict=True))
        lines.append(f"t{i} = {op}({', '.join([source, *parameters])})")
        tensors.append(f"t{i}")
    text = f"(float[N,8,5,5] x) => (float[N,8,5,5] y) {{ {' '.join(lines)} y = Add(t{len(layers) - 1}, x) }}"
    prepared_and_checked(model(text, opset=opset, **constants))


def test_unknown_operators_are_an_error():
    with pytest.raises(ModelError, match=r"cannot run the model.*Nonsense"):
        prepare(model("(float[N,8] x) => (float[N,8] y) { y = com.microsoft.Nonsense(x) }"))


def test_opset_that_cannot_be_raised_is_an_error(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    with pytest.raises(ModelError, match="cannot be raised to opset 13: no adapter"):
        prepare(model("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }", opset=12))
