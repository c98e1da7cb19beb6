"""Shapes as they follow from the inputs, and when there is nothing more to find."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quark.onnx.graph.known_shapes import with_inferred_shapes
from quark.onnx.preparation.prepare import prepare

Shape = list[int | str | None]


def model_of(text: str, **constants: object) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17, "com.example": 1]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(c), name) for name, c in constants.items())
    return model


def shape_of(model: onnx.ModelProto, name: str) -> list[int | str]:
    (value,) = (value for value in (*model.graph.value_info, *model.graph.output) if value.name == name)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_what_is_said_of_a_tensor_that_no_node_makes_is_forgotten():
    """Another node may get its name, as a folded tensor's may be that of a new QuantizeLinear's output."""
    model = model_of("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    model.graph.value_info.append(helper.make_tensor_value_info("folded", TensorProto.FLOAT, [2, 3]))
    assert not with_inferred_shapes(model).graph.value_info


def test_of_what_cannot_be_inferred_the_number_of_axes_is_believed():
    model = model_of(
        "(float[N,4] x) => (float[N,3] y) { a = com.example.Twice(x) y = MatMul(a, w) }", w=np.ones((8, 3))
    )
    stated = helper.make_tensor_value_info("a", TensorProto.FLOAT, ["other", 8])
    model.graph.value_info.append(stated)
    result = with_inferred_shapes(model)
    assert shape_of(result, "a") == [0, 0]
    assert shape_of(result, "y")[1:] == [3]


DIVIDED_BY_HEIGHT = "s = Shape(r) h = Gather(s, two) d = Cast<to=1>(h)"


@pytest.mark.parametrize("where", ["output", "inner", "before it", "body"])
def test_stated_shapes_of_another_input_size_do_not_count(where: str):
    text = {
        "output": f"(float[N,4,8,8] x) => (float[N,4,16,16] p, float[N,4,8,8] y) {{"
        f" p = Relu(x) r = Sigmoid(p) {DIVIDED_BY_HEIGHT} y = Div(r, d) }}",
        "inner": f"(float[N,4,8,8] x) => (float[N,4,8,8] y) {{ r = Relu(x) {DIVIDED_BY_HEIGHT} y = Div(r, d) }}",
        "before it": f"(float[N,4,8,8] x) => (float[N,4,8,8] y) {{"
        f" p = Conv<pads = [1, 1, 1, 1]>(x, w) q = Relu(p) r = Relu(q) {DIVIDED_BY_HEIGHT} y = Div(r, d) }}",
        "body": f"(float[N,4,8,8] x, bool k) => (float[N,4,8,8] y) {{ y = If(k) <"
        f" then_branch = t () => (float[N,4,8,8] ty) {{ r = Relu(x) {DIVIDED_BY_HEIGHT} ty = Div(r, d) }},"
        f" else_branch = e () => (float[N,4,8,8] ey) {{ ey = Identity(x) }}> }}",
    }[where]
    model = model_of(text, two=np.int64(2), w=np.ones((4, 4, 3, 3), np.float32))
    stale = helper.make_tensor_value_info("p" if where == "before it" else "r", TensorProto.FLOAT, ["N", 4, 16, 16])
    if where != "output":
        (model.graph.node[0].attribute[0].g if where == "body" else model.graph).value_info.append(stale)
    feeds = {"x": np.ones((2, 4, 8, 8), np.float32), "k": np.array(True)}
    feeds = {value.name: feeds[value.name] for value in model.graph.input}
    evaluators = map(onnx.reference.ReferenceEvaluator, (model, prepare(model)))
    wanted, have = (evaluator.run(["y"], feeds)[0] for evaluator in evaluators)
    np.testing.assert_allclose(have, wanted, rtol=1e-5)


RESHAPED = (
    "(float[batch,6,2,2] x) => (float[rows,4] y) { a = Reshape(x, s) b = MatMul(a, w) e = MatMul(b, v) y = Add(e, c) }"
)


@pytest.mark.parametrize(
    ("text", "shape", "operators"),
    [
        ("(float[N,8] x) => (float[N,6] f, float[N,4] y) { a = MatMul(x,w) f = Relu(a) b = MatMul(f,v) y = Add(b,c) }",
         [], "MatMul Relu Gemm"),
        ("(float[1,16,8] x) => (float[1,16,4] y) { a = MatMul(x, w) b = Add(a, d) e = MatMul(b, v) y = Add(e, c) }",
         [], "Reshape Gemm Gemm Reshape"),
        (RESHAPED, [-1, 8], "Reshape MatMul Gemm"),
        (RESHAPED, [0, 8], "Reshape MatMul Gemm"),
        (RESHAPED, [-1, 24], "Reshape MatMul Gemm"),
    ],
)  # fmt: skip
def test_shapes_are_known_where_products_are_written_as_gemm(text: str, shape: list[int], operators: str):
    weights = {"w": (shape[-1] if shape else 8, 6), "v": (6, 4), "d": 6, "c": 4}
    constants = {name: np.ones(size, np.float32) for name, size in weights.items() if name in text}
    model = model_of(text, **constants, **({"s": shape} if shape else {}))
    assert " ".join(node.op_type for node in prepare(model).graph.node) == operators
