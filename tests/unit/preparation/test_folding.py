"""What stands around a layer goes into it where that is the same, and nowhere else."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from small_models import build, run

from quark.onnx.graph.editor import GraphEditor
from quark.onnx.inference.sessions import Engine
from quark.onnx.preparation.fold_into_layers import fold_into_layers, fold_numbers_in_front
from quark.onnx.preparation.prepare import prepared_on

OUTPUTS = 6  # channels; also the length of other axes, so that a wrong axis fits
# layer: text, shape of the input, shape of the weight; an output of N x 6 (x 6 x 6 ...)
LAYERS = {
    "Conv 1-D": ("Conv<pads=[1,1]>", (2, 4, 6), (6, 4, 3)),
    "Conv 2-D": ("Conv<pads=[1,1,1,1]>", (2, 4, 6, 6), (6, 4, 3, 3)),
    "Conv 2-D, groups": ("Conv<group=2, pads=[1,1,1,1]>", (2, 4, 6, 6), (6, 2, 3, 3)),
    "Conv 3-D": ("Conv", (1, 2, 6, 6, 6), (6, 2, 1, 1, 1)),
    "ConvTranspose 1-D": ("ConvTranspose<strides=[2]>", (2, 4, 3), (4, 6, 2)),
    "ConvTranspose 2-D": ("ConvTranspose<strides=[2,2]>", (2, 4, 3, 3), (4, 6, 2, 2)),
    "ConvTranspose 2-D, groups": ("ConvTranspose<group=2, strides=[2,2]>", (2, 4, 3, 3), (4, 3, 2, 2)),
    "ConvTranspose 3-D": ("ConvTranspose", (1, 2, 6, 6, 6), (2, 6, 1, 1, 1)),
    "Gemm": ("Gemm", (6, 5), (5, 6)),
    "Gemm, transposed": ("Gemm<alpha=0.5, transB=1>", (6, 5), (6, 5)),
    "MatMul": ("MatMul", (6, 5), (5, 6)),
    "MatMul of three axes": ("MatMul", (6, 6, 5), (5, 6)),
}


@given(
    st.sampled_from(sorted(LAYERS)),
    st.lists(st.sampled_from(["Mul", "Add", "Div", "Sub"]), min_size=1, max_size=3),
    st.sampled_from(["none", "bias", "computed bias"]),
    st.booleans(),
    st.data(),
)
@settings(max_examples=60, deadline=None)
def test_constants_along_any_axis(
    layer: str, operators: list[str], bias: str, fixed: bool, data: st.DataObject
) -> None:
    op, x_shape, w_shape = LAYERS[layer]
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    bias = "none" if op == "MatMul" else bias
    rank = len(x_shape)
    constants, lines, before = {"w": rng.standard_normal(w_shape)}, [], "h"
    for i, operator in enumerate(operators):
        count = data.draw(st.integers(0, rank), label="axes")
        long = data.draw(st.sets(st.integers(0, max(count - 1, 0))), label="long axes")
        shape = [OUTPUTS if axis in long and count - axis < rank else 1 for axis in range(count)]
        constants[f"c{i}"] = rng.uniform(0.5, 2, shape)
        reads = [before, f"c{i}"] if data.draw(st.booleans(), label="first") else [f"c{i}", before]
        before = f"t{i}"
        lines.append(f"{before} = {operator}({', '.join(reads)})")
    if bias != "none":
        constants["b"] = rng.standard_normal(OUTPUTS)
    made = "s = Abs(b)" if bias == "computed bias" else ""
    reads = {"none": "x, w", "bias": "x, w, b", "computed bias": "x, w, s"}[bias]
    inputs = ",".join(str(n) if fixed or i else "N" for i, n in enumerate(x_shape))
    axes = ",".join("ABCDE"[:rank])
    nodes = f"{made} h = {op}({reads}) {' '.join(lines)} y = Relu({before})"
    model = build(f"(float[{inputs}] x) => (float[{axes}] y) {{ {nodes} }}", **constants)
    x = rng.standard_normal(x_shape).astype(np.float32)
    wanted = run(model, {"x": x})
    prepared = prepared_on(model, [{"x": x}], Engine(1))
    assert prepared.notes == ()
    onnx.checker.check_model(prepared.model, full_check=True)
    for optimise in (False, True):
        (have,) = run(prepared.model, {"x": x}, optimise=optimise)
        np.testing.assert_allclose(have, wanted[0], rtol=1e-3, atol=1e-5 * float(np.abs(wanted[0]).max()))


@pytest.mark.parametrize("layer", [name for name in LAYERS if not name.startswith("MatMul")])
def test_constants_per_channel_go_in(layer: str) -> None:
    op, x_shape, w_shape = LAYERS[layer]
    rng, rank = np.random.default_rng(1), len(x_shape)
    per_channel = (OUTPUTS,) + (1,) * (rank - 2)
    text = f"[a] h = {op}(x, w) m = Mul(h, c) p = Add(d, m) q = Sub(e, p) r = Div(q, f) y = Sub(r, c)"
    shape = ",".join("ABCDE"[:rank])
    model = build(
        f"(float[{','.join(map(str, x_shape))}] x) => (float[{shape}] y) {{ {text} }}",
        w=rng.standard_normal(w_shape), c=rng.standard_normal(per_channel), d=rng.standard_normal((1, *per_channel)),
        e=np.float32(2.5), f=np.full((1, 1), 3.0),
    )  # fmt: skip
    x = rng.standard_normal(x_shape).astype(np.float32)
    prepared = prepared_on(model, [{"x": x}], Engine(1))
    assert prepared.notes == ()
    (node,) = prepared.model.graph.node
    assert (node.name, len(node.input)) == ("a", 3)


@pytest.mark.parametrize(
    ("constant", "operator"),
    [((6,), "Mul"), ((6, 1), "Add"), ((1, 1, 1, 6), "Div"), ((1, 6, 6, 1), "Mul"), ((1, 1, 6, 1, 1), "Add")],
)
def test_constants_along_other_axes_stay(constant: tuple[int, ...], operator: str) -> None:
    model = build(
        f"(float[1,4,6,6] x) => (float[{'A,B,C,D,E' if len(constant) == 5 else 'A,B,C,D'}] y) "
        f"{{ h = Conv(x, w) y = {operator}(h, c) }}",
        w=np.ones((6, 4, 1, 1)), c=np.arange(1.0, 1 + np.prod(constant)).reshape(constant),
    )  # fmt: skip
    fold_into_layers(GraphEditor(model.graph))
    assert [node.op_type for node in model.graph.node] == ["Conv", operator]


# ---- numbers in front ------------------------------------------------------------------------------


def with_numbers(
    layer: str, numbers: list[tuple[str, bool, tuple[int, ...]]], *, bias: bool = False
) -> tuple[onnx.ModelProto, np.ndarray]:
    """Operators with one number each (on the left?, its shape) in front of a layer, and its input."""
    op, x_shape, w_shape = LAYERS[layer]
    rng = np.random.default_rng(len(numbers))
    constants, nodes, tensor = {"w": rng.standard_normal(w_shape)}, [], "x"
    for i, (operator, on_the_left, shape) in enumerate(numbers):
        constants[f"c{i}"] = rng.uniform(0.5, 2, shape)
        reads = (f"c{i}", tensor) if on_the_left else (tensor, f"c{i}")
        nodes.append(f"[n{i}] t{i} = {operator}({', '.join(reads)})")
        tensor = f"t{i}"
    if bias:
        constants["b"] = rng.standard_normal(OUTPUTS)
    nodes.append(f"[layer] y = {op}({tensor}, w{', b' if bias else ''})")
    axes = ",".join("ABCDE"[: len(x_shape)])
    text = f"(float[{','.join(map(str, x_shape))}] x) => (float[{axes}] y) {{ {' '.join(nodes)} }}"
    return build(text, **constants), rng.uniform(0.5, 2, x_shape).astype(np.float32)


@given(
    st.sampled_from(sorted(LAYERS)),
    st.lists(
        st.tuples(st.sampled_from(["Mul", "Add", "Div", "Sub"]), st.booleans(), st.sampled_from([(), (1,), (1, 1)])),
        min_size=1,
        max_size=4,
    ),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_numbers_in_front(layer: str, numbers: list[tuple[str, bool, tuple[int, ...]]], bias: bool) -> None:
    model, x = with_numbers(layer, numbers, bias=bias and not layer.startswith("MatMul"))
    (wanted,) = run(model, {"x": x})
    prepared = prepared_on(model, [{"x": x}], Engine(1))
    assert prepared.notes == ()
    onnx.checker.check_model(prepared.model, full_check=True)
    (have,) = run(prepared.model, {"x": x})
    np.testing.assert_allclose(have, wanted, rtol=1e-3, atol=1e-4 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("layer", [name for name in LAYERS if not name.startswith("MatMul")])
def test_numbers_go_in_where_no_zeros_are_put_around(layer: str) -> None:
    same = "pads" not in LAYERS[layer][0] and "Transpose" not in layer
    numbers = [("Mul", True, (1,)), ("Add", False, ()), ("Div", False, (1, 1)), ("Sub", False, (1,))]
    model, x = with_numbers(layer, numbers)
    prepared = prepared_on(model, [{"x": x}], Engine(1)).model
    left = [node.op_type for node in prepared.graph.node if node.name != "layer"]
    assert left == ([] if same else ["Add"])  # of all numbers, before the multiplications, which went in
    names = {name for node in prepared.graph.node for name in node.output}
    assert not names & {f"t{i}" for i in range(4)}  # what is left has other values


@pytest.mark.parametrize(
    "text",
    [
        "m = Mul(x, c) y = Conv(m, w) z = Relu(m)",  # another reader
        "z = Mul(x, c) y = Conv(z, w)",  # an output
        "m = Mul(x, v) y = Conv(m, w) z = Relu(x)",  # a number per channel
        "m = Div(c, x) y = Conv(m, w) z = Relu(x)",
        "m = Mul(x, long) q = Squeeze(m, zero) y = Conv(q, w) z = Relu(x)",
        "m = Mul(x, c) r = Abs(w) y = Conv(m, r) z = Relu(x)",  # a weight that is computed
    ],
)
def test_what_is_no_number_for_one_layer_stays(text: str) -> None:
    model = build(
        f"(float[1,4,6,6] x) => (float[A,B,C,D] y, float[E,F,G,H] z) {{ {text} }}",
        w=np.ones((6, 4, 1, 1)), c=np.float32(2), v=np.full((4, 1, 1), 2.0), long=np.full((1, 1, 1, 1, 1), 2.0),
        zero=np.array([0]),
    )  # fmt: skip
    before = [node.op_type for node in model.graph.node]
    fold_numbers_in_front(GraphEditor(model.graph))
    assert [node.op_type for node in model.graph.node] == before


# ---- Pad -------------------------------------------------------------------------------------------


def padded(pads: list[int], axes: list[int] | None, before: str, behind: str, **options: float) -> onnx.ModelProto:
    """x (1,4,6,6), Conv if wanted, Pad, Conv if wanted."""
    rng = np.random.default_rng(0)
    nodes, tensor = [], "x"
    if before:
        nodes.append(helper.make_node(before, ["x", "v"], ["h"], pads=[1] * 4))
        tensor = "h"
    value = "value" if options else ""
    reads = [tensor, "pads", value, "axes"] if axes is not None else [tensor, "pads", value]
    nodes.append(helper.make_node("Pad", reads, ["p"]))
    nodes.append(helper.make_node("Conv" if behind else "Relu", ["p", "w"] if behind else ["p"], ["y"]))
    constants = {
        "v": rng.standard_normal((4, 4, 3, 3)).astype(np.float32),
        "w": rng.standard_normal((5, 4, 2, 2)).astype(np.float32),
        "pads": np.array(pads), "axes": np.array(axes or []), "value": np.float32(options.get("value", 0.0)),
    }  # fmt: skip
    used = {name for node in nodes for name in node.input}
    x, y = (helper.make_tensor_value_info(*value) for value in (("x", 1, ["N", 4, 6, 6]), ("y", 1, list("ABCD"))))
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("before", ["", "Conv"])
@pytest.mark.parametrize("behind", ["", "Conv"])
@pytest.mark.parametrize(
    ("pads", "axes", "options"),
    [
        ([0, 0, 1, 1], [2, 3], {}),
        ([1, 0, 2, 1], [-1, 2], {}),
        ([0, 0], [3], {}),
        ([2, 1], [-2], {}),
        ([1, 0], [1], {}),
        ([-1, 0, 1, 2], [2, 3], {}),
        ([1, 1, 1, 1], [2, 3], {"value": 0.5}),
        ([0, 0, 1, 0, 0, 0, 0, 1], None, {}),
    ],
)
def test_pads_of_some_axes(
    pads: list[int], axes: list[int], options: dict[str, float], before: str, behind: str
) -> None:
    if axes == [1] and behind:
        pytest.skip("the Conv behind takes 4 channels")
    model = padded(pads, axes, before, behind, **options)
    items = [{"x": np.random.default_rng(i).standard_normal((1, 4, 6, 6)).astype(np.float32)} for i in range(2)]
    prepared = prepared_on(model, items, Engine(1))
    assert prepared.notes == ()
    onnx.checker.check_model(prepared.model, full_check=True)
    left = [node for node in prepared.model.graph.node if node.op_type == "Pad"]
    assert all(len(node.input) <= 3 for node in left)
    assert bool(left) == (any(pads) and (not behind or min(pads) < 0 or bool(options)))
    for item in items:
        np.testing.assert_allclose(run(prepared.model, item)[0], run(model, item)[0], rtol=1e-4, atol=1e-5)


# ---- constants -------------------------------------------------------------------------------------


def test_constants_that_are_large_stay_nodes() -> None:
    model = build(
        "(float[N,1] x) => (float[N,4000000] y) { c = ConstantOfShape(s) y = Add(x, c) }", s=np.array([4_000_000])
    )
    prepared = prepared_on(model, [], Engine(1)).model
    assert [node.op_type for node in prepared.graph.node] == ["ConstantOfShape", "Add"]


def test_shapes_are_folded_where_they_are_known() -> None:
    text = """(float[N,4,6] x) => (float[N,24] y, int64[A] z) {
        s = Shape(x) b = Gather(s, zero) u = Unsqueeze(b, zero1) n = Concat<axis=0>(u, rest) y = Reshape(x, n)
        t = Shape<start=1>(x) z = Mul(t, t)
    }"""
    model = build(text, zero=np.int64(0), zero1=np.array([0]), rest=np.array([24]))
    item = {"x": np.ones((2, 4, 6), np.float32)}
    prepared = prepared_on(model, [item], Engine(1)).model
    assert [node.op_type for node in prepared.graph.node] == ["Reshape", "Mul"]
    for wanted, have in zip(run(model, item), run(prepared, item), strict=True):
        np.testing.assert_array_equal(have, wanted)


@pytest.mark.parametrize(
    "line",
    [
        "h = Identity(x)", "h = Dropout(x)", "h = Dropout(x, r, f)", "h = Cast<to=1>(x)", "h = Reshape(x, s)",
        "h = Pad(x, p)", "h = Transpose<perm=[0,1,2]>(x)", "h = Mul(x, one)", "h = Div(x, ones)", "h = Add(none, x)",
        "h = Sub(x, none)", "a = Reshape(x, s2) h = Reshape(a, s)",
    ],
)  # fmt: skip
def test_nodes_without_effect_go(line: str) -> None:
    constants = {
        "r": 0.5, "f": np.array(False), "s": np.array([-1, 4, 6]), "s2": np.array([-1, 24]), "p": np.zeros(6, np.int64),
        "one": 1.0, "ones": np.ones((4, 1)), "none": 0.0,
    }  # fmt: skip
    model = build(
        f"(float[N,4,6] x) => (float[N,4,6] y, float[N,4,6] z) {{ {line} y = Relu(h) c = Abs(y) z = Identity(c) }}",
        **{name: value for name, value in constants.items() if name in re.findall(r"\w+", line)},
    )
    item = {"x": np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)}
    prepared = prepared_on(model, [item], Engine(1))
    assert prepared.notes == ()
    assert [node.op_type for node in prepared.model.graph.node] == ["Relu", "Abs"]


@pytest.mark.parametrize(
    "line", ["h = Sub(none, x)", "h = Div(one, x)", "h = Mul(x, wide)", "h = Mul(x, two)", "h = Reshape(x, s)"]
)
def test_nodes_with_an_effect_stay(line: str) -> None:
    constants = {"one": 1.0, "none": 0.0, "two": 2.0, "wide": np.ones((2, 1, 1, 1)), "s": np.array([-1, 6, 4])}
    model = build(
        f"(float[N,4,6] x) => (float{'[A,B,C,D]' if 'wide' in line else '[A,B,C]'} y) {{ {line} y = Relu(h) }}",
        **{name: value for name, value in constants.items() if name in re.findall(r"\w+", line)},
    )
    prepared = prepared_on(model, [{"x": np.ones((2, 4, 6), np.float32)}], Engine(1))
    assert len(prepared.model.graph.node) == 2
