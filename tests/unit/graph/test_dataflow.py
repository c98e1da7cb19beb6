"""Which tensors are constant, which nodes make a tensor, and segments as models."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from reference.random_graphs import SIDE, RandomGraph, random_graphs
from small_models import build, run

from quark.onnx.graph.dataflow import Dataflow, Segment

CONSTANTS = """(float[N,2] x, float[2] overridable) => (float[N,2] y, float[N,2] z) {
    [real] w_real = DequantizeLinear(w, scale)
    [scaled] w_scaled = Mul(w_real, overridable)
    [noise] n = RandomNormal<shape=[2]>()
    [loud] m = Add(n, n)
    [product] a = MatMul(x, w_scaled)
    [sum] y = Add(a, m)
    [copy] z = Identity(x)
}"""


def names(nodes: list[onnx.NodeProto]) -> list[str]:
    return [node.name for node in nodes]


def test_constant_is_what_no_input_and_no_chance_reaches():
    model = build(CONSTANTS, w=np.ones((2, 2), np.int8), scale=0.5, overridable=np.ones(2))
    flow = Dataflow(model)
    tensors = ["w", "scale", "overridable", "w_real", "w_scaled", "x", "n", "m", "a", "y", "z"]
    assert [t for t in tensors if flow.is_constant(t)] == ["w", "scale", "overridable", "w_real", "w_scaled"]
    assert flow.inputs == ("x",)  # an initializer among the inputs is a default
    assert flow.outputs == ("y", "z")
    assert flow.producer["y"].name == "sum"


def test_ancestors_in_graph_order():
    flow = Dataflow(build(CONSTANTS, w=np.ones((2, 2), np.int8), scale=0.5, overridable=np.ones(2)))
    assert names(flow.ancestors(["y"], ["x"])) == ["noise", "loud", "product", "sum"]
    assert names(flow.ancestors(["y"], ["a", "n"])) == ["loud", "sum"]
    assert names(flow.ancestors(["y", "z"], ["y", "x"])) == ["copy"]
    assert names(flow.ancestors(["w_real", "x"], ["x"])) == []


def branching() -> onnx.ModelProto:
    """y = x + scale * w where flag, else x; both branches read tensors from around."""

    def branch(name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])

    then = branch(
        "then",
        [
            helper.make_node("Mul", ["w_real", "factor"], ["inner"]),
            helper.make_node("Add", ["doubled", "inner"], ["then"]),
        ],
    )
    other = branch("other", [helper.make_node("Identity", ["doubled"], ["other"])])
    model = build(
        """(float[N] x, bool flag) => (float[M] y) {
            [real] w_real = DequantizeLinear(w, scale)
            [double] doubled = Add(x, x)
            y = Identity(x)
        }""",
        w=np.array([4], np.int8),
        scale=0.5,
        factor=3.0,
    )
    del model.graph.node[-1]
    model.graph.node.append(helper.make_node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other))
    onnx.checker.check_model(model)
    return model


def test_tensors_read_inside_subgraphs_count():
    flow = Dataflow(branching())
    assert {"flag", "w_real", "factor", "doubled"} <= set(flow.reads(flow.producer["y"]))
    assert names(flow.ancestors(["y"], ["x", "flag"])) == ["double", "if"]
    segment = Segment(tuple(flow.ancestors(["y"], ["flag", "doubled"])), ("doubled", "flag"), ("y",))
    model = flow.segment_model(segment, {"doubled": TensorProto.FLOAT, "flag": TensorProto.BOOL})
    assert {t.name for t in model.graph.initializer} == {"w", "scale", "factor"}
    for flag, expected in ((True, 16), (False, 10)):
        (y,) = run(model, {"doubled": np.float32([10]), "flag": np.array(flag)})
        np.testing.assert_array_equal(y, [expected])


def test_a_segment_takes_the_present_initializers():
    model = build("(float[N] x) => (float[N] y) { y = Mul(x, w) }", w=2.0)
    flow = Dataflow(model)
    segment = Segment((flow.producer["y"],), ("x",), ("y",))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(7), "w"))
    (y,) = run(flow.segment_model(segment, {"x": TensorProto.FLOAT}), {"x": np.float32([1])})
    np.testing.assert_array_equal(y, [7])


@settings(max_examples=30, deadline=None)
@given(random_graphs(), st.data())
def test_a_cut_anywhere_changes_nothing(graph: RandomGraph, data: st.DataObject):
    """All nodes up to some tensors as one segment, the rest as another: together they are the model."""
    model = graph.model
    flow = Dataflow(model)
    rng = np.random.default_rng(0)
    inputs = {n: rng.standard_normal((2, graph.channels[n], SIDE, SIDE), np.float32) for n in graph.inputs}
    cut = data.draw(st.lists(st.sampled_from(sorted(graph.channels)), max_size=3, unique=True))
    have = dict(inputs)
    for targets in (cut, graph.outputs):
        nodes = flow.ancestors(targets, have)
        made = {name for node in nodes for name in node.output}
        reads = {name for node in nodes for name in flow.reads(node)} & have.keys()
        if nodes:
            segment = Segment(tuple(nodes), tuple(sorted(reads)), tuple(sorted(made)))
            segment_model = flow.segment_model(segment, dict.fromkeys(reads, TensorProto.FLOAT))
            have.update(zip(segment.outputs, run(segment_model, {n: have[n] for n in segment.inputs}), strict=True))
    for name, expected in zip(graph.outputs, run(model, inputs), strict=True):
        np.testing.assert_array_equal(have[name], expected)
