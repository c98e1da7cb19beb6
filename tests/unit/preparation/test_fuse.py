"""One operator in the place of each pattern, which computes the same under the same names; nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from exported_models import bert_block, efficientnet_block, mobilenet_v3_block
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference.pattern_cases import BIAS, CASES, SCALE, WIDE_SCALE, Case, pattern_model
from reference.random_writing import RandomWriting
from small_models import build, initializers, run

from quark.onnx.inference.sessions import Engine
from quark.onnx.patterns.pattern_table import PATTERNS, Pattern
from quark.onnx.preparation.fuse import fuse_patterns
from quark.onnx.preparation.prepare import prepare, prepared_on

FIRST_OPSET = {"HardSigmoid": 6, "PRelu": 7, "HardSwish": 14, "LayerNormalization": 17, "Gelu": 20}
FUSED = {name: case for name, case in CASES.items() if case.stands_for != "SiLU"}
EVERY_CASE = pytest.mark.parametrize("case", FUSED.values(), ids=FUSED)
NUMBERS = {"zero": 0.0, "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0, "six": 6.0, "root": 2**0.5, "epsilon": 1e-5}

MEANS = "m = ReduceMean<axes=[-1]>({x}) d = Sub({x}, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p)"
NORM = f"{MEANS} e = Add(v, epsilon) q = Sqrt(e) n = Div(d, q)".format
GELU = "f = Div({x}, root) g = Erf(f) h = Add(g, one) i = Mul({x}, h) {y} = Mul(i, half)".format


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(model)


def opset(model: onnx.ModelProto) -> int:
    return model.opset_import[0].version


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def samples(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    (value,) = model.graph.input
    shape = [dim.dim_value or 3 for dim in value.type.tensor_type.shape.dim]
    return {value.name: (2 * np.random.default_rng(seed).standard_normal(shape) + 0.5).astype(np.float32)}


def assert_computes_the_same(model: onnx.ModelProto, original: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert (model.graph.input, model.graph.output) == (original.graph.input, original.graph.output)
    for actual, expected in zip(run(model, samples(model)), run(original, samples(model)), strict=True):
        assert actual.shape == expected.shape
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def norm_model(shape: str, rest: str, **constants: Any) -> onnx.ModelProto:
    text = f"(float[{shape}] x) => (float[{shape}] y) {{ {NORM(x='x')} {rest} }}"
    return build(text, opset=17, two=2.0, epsilon=1e-5, **constants)


# ---- every pattern --------------------------------------------------------------------------------


@EVERY_CASE
def test_an_operator_takes_the_place_of_a_pattern(case: Case) -> None:
    original = case.graph()
    for node in original.graph.node:
        node.name = f"makes {node.output[0]}"
    result = fused(original)
    (node,) = result.graph.node
    assert (node.op_type, node.name, node.output[0]) == (case.stands_for, "makes y", "y")
    assert opset(result) == max(case.opset, FIRST_OPSET[case.stands_for])
    assert result.ir_version >= helper.find_min_ir_version_for(result.opset_import, ignore_unknown=True)
    assert set(initializers(result)) == set(node.input) - {"x"}
    assert_computes_the_same(result, case.graph())
    assert_computes_the_same(result, case.node())


@EVERY_CASE
@pytest.mark.parametrize("version", [11, 13])
def test_prepared_models_have_them(case: Case, version: int) -> None:
    """With constants as nodes, as PyTorch writes them."""
    original = pattern_model(case.text, max(version, case.opset), {**case.numbers, **case.parameters})
    for i, tensor in enumerate(original.graph.initializer):
        original.graph.node.insert(i, helper.make_node("Constant", [], [tensor.name], value=tensor))
    original.graph.ClearField("initializer")
    result = prepare(original)
    assert ops(result) == [case.stands_for]
    assert_computes_the_same(result, original)


VALUES: dict[str, Any] = {
    "alpha": 0.3, "beta": 0.4, "slope": BIAS, "scale": SCALE, "bias": BIAS, "epsilon": 1e-3, "axes": [-1]
}  # fmt: skip


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.stands_for != "SiLU"], ids=lambda p: p.formula.strip())
@given(st.data())
@settings(max_examples=15, deadline=None)
def test_however_it_is_written(pattern: Pattern, data: st.DataObject) -> None:
    writing = RandomWriting(data, VALUES, axes_are_inputs=False)
    output = writing.write(pattern.formula)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 6]) for name in ("x", output)]
    constants = [numpy_helper.from_array(array, name) for name, array in writing.initializers.items()]
    graph = helper.make_graph(writing.nodes, "g", values[:1], values[1:], constants)
    original = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = prepare(original)
    assert ops(result) == [pattern.stands_for]
    assert_computes_the_same(result, original)


# ---- a model around them --------------------------------------------------------------------------


def test_several_patterns_and_what_is_around_them() -> None:
    original = bert_block()
    result = prepare(original)
    assert Counter(ops(result)) == {
        "MatMul": 9, "LayerNormalization": 3, "Add": 3, "Gelu": 1, "Softmax": 1, "Transpose": 1
    }  # fmt: skip
    names = [node.name for node in result.graph.node if node.op_type in FIRST_OPSET]
    assert names == ["n1_end", "n2_end", "g_end", "n3_end"]
    assert_computes_the_same(result, original)
    norm = next(node for node in result.graph.node if node.name == "n2_end")
    assert list(norm.input) == ["r1", "norm2_w", "norm2_b"], "initializers that are there keep their names"


@pytest.mark.parametrize("make", [efficientnet_block, mobilenet_v3_block])
def test_convolutional_models_compute_the_same(make: Callable[[], onnx.ModelProto]) -> None:
    original = make()
    result = prepare(original)
    assert_computes_the_same(result, original)
    kinds = Counter(ops(result))
    if make is efficientnet_block:
        assert (kinds["Sigmoid"], opset(result)) == (5, 13), "SiLU stays as it is"
    else:
        assert (kinds["HardSwish"], kinds["HardSigmoid"], kinds["Clip"]) == (4, 1, 0)


def test_a_model_without_patterns_stays() -> None:
    original = build("(float[N,8] x) => (float[N,8] y) { a = Add(x, three) b = Relu(a) y = Sigmoid(b) }", three=3.0)
    expected = original.SerializeToString()
    assert fuse_patterns(original).SerializeToString() == expected


def test_float64_stays() -> None:
    text = "(double[N,8] x) => (double[N,8] y) { s = Sqrt(two) d = Div(x, s) e = Erf(d) a = Add(e, one) m = Mul(x, a) "
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 20]> g {text} y = Mul(m, half) }}')
    for name, value in NUMBERS.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    result = fuse_patterns(onnx.shape_inference.infer_shapes(model))
    assert ops(result) == ops(model)


# ---- the opset ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)", 13),
        ("a = Add(x, three) c = Clip(a, zero, six) b = Mul(c, x) y = Div(b, six)", 14),
        (f"{NORM(x='x')} y = Relu(n)", 17),
        (f"{NORM(x='x')} {GELU(x='n', y='y')}", 20),
    ],
)
def test_the_opset_is_raised_as_far_as_needed(text: str, expected: int) -> None:
    original = pattern_model(text, 13, NUMBERS)
    result = fused(original)
    assert opset(result) == expected
    assert_computes_the_same(result, original)


def test_nodes_that_newer_opsets_write_in_another_way() -> None:
    """ReduceMean and Split get inputs; other domains stay."""
    text = (
        f"{NORM(x='x')} r = ReduceMax<axes=[-1]>(n) a, b = Split<axis=2>(n) "
        f"c = Concat<axis=2>(b, a) {GELU(x='c', y='s')} t = com.microsoft.QuickGelu(s) y = Sub(t, r)"
    )
    original = pattern_model(text, 13, NUMBERS)
    result = prepare(original)
    assert_computes_the_same(result, original)
    assert {"LayerNormalization", "Gelu", "QuickGelu"} <= set(ops(result))
    assert "Constant" not in ops(result)


def test_a_model_that_cannot_be_raised_stays_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    text = f"{NORM(x='x')} {GELU(x='n', y='b')} c = Add(b, three) e2 = Clip(c, zero, six) y = Div(e2, six)"
    original = pattern_model(text, 13, NUMBERS)
    prepared = prepared_on(original, [{"x": np.ones((2, 4, 6), np.float32)}], Engine(1))
    assert opset(prepared.model) == 13
    expected = Counter(ops(original)[:-3]) + Counter(["HardSigmoid"])  # which every opset has
    assert Counter(ops(prepared.model)) == expected
    first, second = prepared.notes
    assert "opset 20, for Gelu, was left out" in first
    assert "opset 17, for LayerNormalization, was left out" in second


# ---- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "rest", "constants", "expected"),
    [
        ("N,4,6", "a = Mul(n, c) y = Add(a, d2)", {"c": SCALE, "d2": WIDE_SCALE[:, :1]}, ["LayerNormalization", "Add"]),
        ("N,4,6", "y = Mul(n, c)", {"c": WIDE_SCALE}, ["LayerNormalization", "Mul"]),
        ("N,4,6", "y = Mul(n, c)", {"c": SCALE[:1]}, ["LayerNormalization"]),
        ("N,4,6", "a = Mul(n, c) y = Add(a, b)", {"c": np.float32(3), "b": np.float32(-1)}, ["LayerNormalization"]),
        ("N,4,6", "y = Add(n, b)", {"b": np.float32(0.5)}, ["LayerNormalization"]),
        ("N,6", "y = Mul(n, c)", {"c": SCALE}, ["LayerNormalization"]),
        ("N,M,6", "a = Mul(c, n) y = Add(b, a)", {"c": SCALE, "b": BIAS}, ["LayerNormalization"]),
        ("N,4,L", "y = Identity(n)", {}, None),
        ("6", "y = Identity(n)", {}, None),
    ],
)
def test_scale_and_bias_have_the_shape_of_what_is_normalized(
    shape: str, rest: str, constants: dict[str, Any], expected: list[str] | None
) -> None:
    """A scale or bias of any shape is taken that is the same along all other axes; None: the graph stays."""
    original = norm_model(shape, rest, **constants)
    result = prepare(original)
    assert ops(result) == (expected or ops(original)[:-1])
    for node in result.graph.node:
        if node.op_type == "LayerNormalization":
            assert all(initializers(result)[name].shape == (6,) for name in node.input[1:])
    if "M" not in shape and "L" not in shape:
        assert_computes_the_same(result, original)


@pytest.mark.parametrize("text", ["s = Erf(d) y = Mul(s, x)", GELU(x="x", y="t") + " y = Identity(t)"])
def test_a_number_with_more_axes_than_x(text: str) -> None:
    """It gives them to y: there is no operator that does."""
    numbers = NUMBERS | {"one": np.ones((1, 1, 1, 1))}
    original = build(f"(float[N,4,6] x) => (float[1,N,4,6] y) {{ d = Mul(x, one) {text} }}", opset=20, **numbers)
    result = prepare(original)
    assert "Gelu" not in ops(result)
    assert_computes_the_same(result, original)


@pytest.mark.parametrize("axes", ["[1]", "[-2]", "[0, 1, 2]", "[0, 2]"])
def test_only_the_last_axes_without_the_first_are_layer_normalization(axes: str) -> None:
    original = pattern_model(f"{NORM(x='x')} y = Identity(n)".replace("[-1]", axes), 17, NUMBERS)
    result = prepare(original)
    assert "LayerNormalization" not in ops(result)
    assert_computes_the_same(result, original)


@pytest.mark.parametrize("axes", ["[2]", "[-1]", "[1, 2]", "[2, 1]", "[-1, -2]", "[-2, -1]"])
def test_the_last_axes_are_layer_normalization(axes: str) -> None:
    original = pattern_model(
        f"{NORM(x='x')} a = Mul(n, c) y = Add(a, b)".replace("[-1]", axes), 17, NUMBERS | {"c": SCALE, "b": BIAS}
    )
    result = prepare(original)
    assert ops(result) == ["LayerNormalization"]
    assert_computes_the_same(result, original)


@pytest.mark.parametrize("slope", [(6,), (4, 6), (4, 1), (1, 4, 6)])
def test_slopes_of_prelu(slope: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).uniform(-1, 1, slope)
    original = pattern_model("r = Relu(x) n = Neg(x) q = Relu(n) s = Mul(c, q) y = Sub(r, s)", 13, {"c": values})
    result = prepare(original)
    assert ops(result) == ["PRelu"]
    assert_computes_the_same(result, original)


@pytest.mark.parametrize(("x", "y"), [("N,6", "4,N,6"), ("N,1,6", "N,4,6")])
def test_slopes_that_make_more_of_x_are_no_prelu(x: str, y: str) -> None:
    text = "r = Relu(x) n = Neg(x) q = Relu(n) s = Mul(c, q) y = Sub(r, s)"
    slope = np.ones((4, 1, 6)) / 3 if x == "N,6" else np.ones((4, 1)) / 3
    original = build(f"(float[{x}] x) => (float[{y}] y) {{ {text} }}", c=slope)
    result = prepare(original)
    assert "PRelu" not in ops(result)
    assert_computes_the_same(result, original)


def test_a_scale_that_makes_more_of_x_stays() -> None:
    text = f"{NORM(x='x')} y = Mul(n, c)"
    original = build(f"(float[N,4,1] x) => (float[N,4,6] y) {{ {text} }}", c=SCALE, two=2.0, epsilon=1e-5)
    result = prepare(original)
    assert "LayerNormalization" not in ops(result), "of one value onnxruntime has none"
    assert_computes_the_same(result, original)


def test_equal_initializers_stay_two() -> None:
    result = prepare(norm_model("N,4,6", "a = Mul(n, first) y = Add(a, second)", first=SCALE, second=SCALE))
    assert list(result.graph.node[0].input) == ["x", "first", "second"]


def test_a_layer_normalization_far_from_zero() -> None:
    """At ten standard deviations; farther off, how precise the operator is depends on onnxruntime's version."""
    original = norm_model("N,4,6", "y = Mul(n, c)", c=SCALE)
    x = samples(original)["x"] + np.float32(20)
    exact = x.astype(np.float64) - x.mean(axis=-1, keepdims=True, dtype=np.float64)
    exact *= SCALE / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + 1e-5)
    assert np.abs(run(prepare(original), {"x": x})[0] - exact).max() < 1e-4
