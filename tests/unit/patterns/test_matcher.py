"""The patterns are found as exporters write them, in every other order too, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference.pattern_cases import BIAS, CASES, SCALE, SLOPE, Case, pattern_model
from reference.random_writing import RandomWriting
from small_models import build

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.patterns.matcher import Match, Matcher
from quark.onnx.patterns.pattern_table import PATTERNS, Pattern

EVERY_CASE = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
NUMBERS = {"zero": 0.0, "one": 1.0, "half": 0.5, "two": 2.0, "three": 3.0, "six": 6.0, "root": 2**0.5, "epsilon": 1e-5}


def found(model: onnx.ModelProto, output: str = "y") -> list[Match]:
    return list(Matcher(Dataflow(model)).at(output))


def found_in(text: str, *, opset: int = 13, **constants: Any) -> list[str]:
    return [match.pattern.stands_for for match in found(pattern_model(text, opset, NUMBERS | constants))]


def inner_tensors(model: onnx.ModelProto) -> list[str]:
    return [name for node in model.graph.node for name in node.output if name != "y"]


# ---- what is one ----------------------------------------------------------------------------------


@EVERY_CASE
def test_what_exporters_write_is_found(case: Case) -> None:
    model = case.graph()
    match = found(model)[0]
    assert (match.pattern.stands_for, match.x, match.output) == (case.stands_for, "x", "y")
    assert match.nodes == {"y", *inner_tensors(model)}
    (node,) = case.node().graph.node
    for item in node.attribute:
        expected = helper.get_attribute_value(item)
        if item.name in ("alpha", "beta", "epsilon"):
            assert match.values[item.name] == pytest.approx(expected)
        elif item.name == "approximate":
            assert match.values[item.name] == expected.decode()
    for name, value in case.parameters.items():
        if name in ("scale", "bias", "slope") and name in node.input:
            np.testing.assert_array_equal(np.ravel(match.values[name]), value.astype(np.float32))


@pytest.mark.parametrize("pattern", PATTERNS, ids=[f"{p.stands_for} {i}" for i, p in enumerate(PATTERNS)])
def test_every_pattern_has_a_case(pattern: Pattern) -> None:
    assert any(list(Matcher(Dataflow(case.graph()), [pattern]).at("y")) for case in CASES.values())


@EVERY_CASE
def test_constants_may_be_nodes(case: Case) -> None:
    """As in a model that nobody simplified."""
    model = case.graph()
    for i, tensor in enumerate(model.graph.initializer):
        model.graph.node.insert(i, helper.make_node("Constant", [], [tensor.name], value=tensor))
    expected = found(model)[0]
    model.graph.ClearField("initializer")
    assert found(model)[0].values.keys() == expected.values.keys()


VALUES: dict[str, Any] = {
    "alpha": 0.3, "beta": 0.4, "slope": SLOPE, "scale": SCALE, "bias": BIAS, "epsilon": 1e-3, "axes": [-1]
}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS, ids=[f"{p.stands_for} {i}" for i, p in enumerate(PATTERNS)])
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_every_way_to_write_it_is_found(pattern: Pattern, data: st.DataObject) -> None:
    opset = data.draw(st.sampled_from([13, 18]))
    writing = RandomWriting(data, VALUES, axes_are_inputs=opset >= 18)
    output = writing.write(pattern.formula)
    graph = helper.make_graph(
        writing.nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, 6])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 4, 6])],
        [numpy_helper.from_array(array, name) for name, array in writing.initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.checker.check_model(model, full_check=True)
    match = next(match for match in found(model, output) if match.pattern == pattern)
    assert match.x == "x"
    assert match.nodes == {node.output[0] for node in writing.nodes}
    for name, value in match.values.items():
        if name in VALUES and name not in pattern.defaults.keys() - pattern.formula.split():
            np.testing.assert_allclose(value, VALUES[name], rtol=1e-5)


# ---- what is none ---------------------------------------------------------------------------------


@EVERY_CASE
def test_with_another_number_it_is_something_else(case: Case) -> None:
    for name, value in case.numbers.items():
        assert not found(case.graph(**{name: 1.01 * value or 0.01})), name


@EVERY_CASE
def test_an_inner_tensor_that_the_model_returns_must_stay(case: Case) -> None:
    for name in inner_tensors(case.graph()):
        model = case.graph()
        model.graph.output.append(onnx.ValueInfoProto(name=name))
        assert not found(model), name


@EVERY_CASE
def test_an_inner_tensor_with_another_reader_must_stay(case: Case) -> None:
    for name in inner_tensors(case.graph()):
        model = case.graph()
        model.graph.node.append(helper.make_node("Abs", [name], ["other"]))
        model.graph.output.append(onnx.ValueInfoProto(name="other"))
        assert not found(model), name


@EVERY_CASE
def test_a_reader_in_a_subgraph_counts(case: Case) -> None:
    for name in inner_tensors(case.graph()):
        model = case.graph()
        branch = onnx.parser.parse_graph(f"b () => (float[N] z) {{ z = Abs({name}) }}")
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "go"))
        model.graph.node.append(helper.make_node("If", ["go"], ["other"], then_branch=branch, else_branch=branch))
        model.graph.output.append(onnx.ValueInfoProto(name="other"))
        assert not found(model), name


@EVERY_CASE
def test_operators_of_other_domains_are_others(case: Case) -> None:
    for i, node in enumerate(case.graph().graph.node):
        model = case.graph()
        model.graph.node[i].domain = "com.example"
        assert not found(model), node.op_type


MEANS = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two)"
END = "e = Add(v, epsilon) q = Sqrt(e) y = Div(d, q)"


@pytest.mark.parametrize(
    "text",
    [
        "z = Neg(x) s = Sigmoid(z) y = Mul(x, s)",
        "a = Abs(x) s = Sigmoid(a) y = Mul(x, s)",
        "h = HardSigmoid<alpha = 0.2>(x) y = Mul(x, h)",
        "h = HardSigmoid<alpha = 0.16666667, beta = 0.4>(x) y = Mul(x, h)",
        "b = Add(x, half) y = Clip(b, zero, one)",
        "a = Mul(x, half) y = Clip(a, zero, one)",
        "y = Clip(x, zero, one)",
        "a = Add(x, three) c = Clip(a, zero) y = Div(c, six)",
        "r = Relu(x) n = Neg(x) q = Relu(n) y = Sub(r, q)",
        "r = Relu(x) n = Abs(x) q = Relu(n) s = Mul(half, q) y = Sub(r, s)",
        "d = Div(x, root) e = Erf(d) a = Sub(one, e) m = Mul(x, a) y = Mul(m, half)",
        "d = Div(root, x) e = Erf(d) a = Add(one, e) m = Mul(x, a) y = Mul(m, half)",
        "d = Div(x, root) e = Erf(d) a = Add(one, e) m = Div(x, a) y = Mul(m, half)",
        "d = Div(x, root) e = Tanh(d) a = Add(one, e) m = Mul(x, a) y = Mul(m, half)",
        "z = Abs(x) d = Div(x, root) e = Erf(d) a = Add(one, e) m = Mul(z, a) y = Mul(m, half)",
        f"{MEANS} v = ReduceMean<axes=[1]>(p) {END}",
        f"{MEANS} v = ReduceMean(p) {END}",
        f"{MEANS} v = ReduceSum(p, axes) {END}",
        f"{MEANS} v = ReduceMax<axes=[-1]>(p) {END}",
        f"{MEANS} v = ReduceMean<axes=[-1]>(p) q = Sqrt(v) y = Div(d, q)",
        f"{MEANS} v = ReduceMean<axes=[-1]>(p) e = Add(v, epsilon) y = Div(d, e)",
        f"{MEANS} v = ReduceMean<axes=[-1]>(p) e = Add(v, epsilon) q = Sqrt(e) y = Div(x, q)",
        f"{MEANS} v = ReduceMean<axes=[-1]>(p) e = Add(v, epsilon) q = Sqrt(e) f = Add(x, m) y = Div(f, q)",
        f"{MEANS} v = ReduceMean<axes=[-1]>(d) {END}",
        "p = Mul(x, x) v = ReduceMean<axes=[-1]>(p) e = Add(v, epsilon) q = Sqrt(e) y = Div(x, q)",
    ],
)
def test_what_is_nearly_one_is_none(text: str) -> None:
    assert found_in(text, axes=np.array([-1])) == []


def test_means_that_lose_their_axis_are_others() -> None:
    """The tensor is square, so that a mean of each row can be taken from each column."""
    text = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean<axes=[-1]{}>(p) e = Add(v, epsilon)"
    for keep, expected in (("", ["LayerNormalization"]), (", keepdims=0", [])):
        body = f"{text.format(keep)} q = Sqrt(e) y = Div(d, q)"
        model = build(f"(float[4,4] x) => (float[4,4] y) {{ {body} }}", opset=13, epsilon=1e-5)
        assert [match.pattern.stands_for for match in found(model)] == expected


def test_another_scale_in_the_middle_is_another_function() -> None:
    text = (
        "m = ReduceMean<axes=[2]>(x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean<axes=[2]>(p) e = Add(v, epsilon) "
        "q = Sqrt(e) a = Div(scale, q) b = Div({}, q) f = Mul(x, a) g = Mul(m, b) h = Sub(bias, g) y = Add(f, h)"
    )
    constants = {"scale": SCALE, "bias": BIAS, "other": SCALE + 1}
    assert found_in(text.format("scale"), **constants) == ["LayerNormalization"]
    assert found_in(text.format("other"), **constants) == []
    assert found_in(text.format("one"), **constants) == []


# ---- what alone reads a tensor --------------------------------------------------------------------


@EVERY_CASE
def test_the_pattern_behind_a_tensor(case: Case) -> None:
    model = case.graph()
    *shorter, match = Matcher(Dataflow(model)).behind("x")
    assert (match.pattern.stands_for, match.output) == (case.stands_for, "y")
    assert {one.pattern.stands_for for one in shorter} <= {"LayerNormalization"}, "without bias, without scale"


@EVERY_CASE
def test_a_tensor_that_others_need_is_not_the_patterns_alone(case: Case) -> None:
    read = case.graph()
    read.graph.node.append(helper.make_node("Abs", ["x"], ["other"]))
    read.graph.output.append(onnx.ValueInfoProto(name="other"))
    returned = case.graph()
    returned.graph.output.append(onnx.ValueInfoProto(name="x"))
    for model in (read, returned):
        assert not list(Matcher(Dataflow(model)).behind("x"))


def test_what_follows_does_not_matter() -> None:
    text = "s = Sigmoid(x) t = Mul(x, s) u = Sigmoid(t) v = Mul(u, t) w = Add(v, t) y = Softmax(w)"
    matcher = Matcher(Dataflow(pattern_model(text, 13, {})))
    assert [(match.x, match.output) for match in matcher.behind("x")] == [("x", "t")]
    assert [match.output for match in matcher.behind("t")] == []


def test_a_graph_with_very_many_readings_is_searched() -> None:
    """Every node squares: x ** 2 ** 60 has more ways to be read than can be looked at one by one."""
    text = " ".join(f"t{i + 1} = Mul(t{i}, t{i})" for i in range(60)).replace("t0", "x")
    assert found(pattern_model(f"{text} y = Mul(t60, t59)", 13, {})) == []
