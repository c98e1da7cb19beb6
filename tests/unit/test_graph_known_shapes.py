"""Shapes that ONNX's inference leaves open, and those that are as good as known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from quark.onnx.graph import prepare as preparing
from quark.onnx.graph.known_shapes import name_batches, shapes_are_known
from quark.onnx.graph.prepare import prepare


def inferred(*nodes: onnx.NodeProto, x: list[int | str | None], **constants: list[int] | np.ndarray) -> onnx.ModelProto:
    """x is the input; the last node's output is the model's, of unknown shape."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def reshape(x: str, shape: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Reshape", [x, shape], [y])


def relu(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y])


def shape_of(model: onnx.ModelProto, name: str) -> list[int | str]:
    (value,) = (value for value in model.graph.value_info if value.name == name)
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_the_batch_keeps_its_name_behind_reshapes():
    nodes = [reshape("x", "s", "a"), relu("a", "b"), reshape("b", "t", "c"), relu("c", "d"), relu("d", "y")]
    model = inferred(*nodes, x=["batch", 6, 2, 2], s=[-1, 24], t=[-1, 4, 6])
    assert shape_of(model, "d") != ["batch", 4, 6]
    name_batches(model.graph)
    assert [shape_of(model, name) for name in "abcd"] == 2 * [["batch", 24]] + 2 * [["batch", 4, 6]]


@pytest.mark.parametrize(
    ("x", "shape"),
    [
        (["batch", 6, 2, 2], [-1, 12]),  # twice as many rows
        (["batch", 6, 2, 2], [12, -1]),
        (["batch", "width", 2, 2], [-1, 4]),
        (["batch", 6, 2, None], [-1, 24]),
        ([None, 6, 2, 2], [-1, 24]),
        (["batch", 0, 2], [-1, 5]),
    ],
)
def test_other_axes_stay_open(x: list[int | str | None], shape: list[int]):
    model = inferred(reshape("x", "s", "a"), relu("a", "b"), relu("b", "y"), x=x, s=shape)
    before = shape_of(model, "b")
    name_batches(model.graph)
    assert shape_of(model, "b") == before
    assert "batch" not in before
    assert not shapes_are_known(model)


def test_numbers_stay_numbers():
    model = inferred(reshape("x", "s", "a"), relu("a", "b"), relu("b", "y"), x=[3, 6, 2, 2], s=[-1, 24])
    name_batches(model.graph)
    assert [shape_of(model, name) for name in "ab"] == 2 * [[3, 24]]


@pytest.mark.parametrize("shape", [[-1, 24], [-1, 12], [0, -1]])
def test_symbolic_inference_would_not_change_what_is_prepared(shape: list[int], monkeypatch: pytest.MonkeyPatch):
    nodes = [reshape("x", "s", "a"), helper.make_node("MatMul", ["a", "w"], ["b"]), relu("b", "y")]
    rows = 12 if 12 in shape else 24
    model = inferred(*nodes, x=["batch", 6, 2, 2], s=shape, w=np.ones((rows, 3), np.float32))
    result = prepare(model)
    monkeypatch.setattr(preparing, "shapes_are_known", lambda _: False)
    other = prepare(model)
    assert list(result.graph.node) == list(other.graph.node)
    assert list(result.graph.initializer) == list(other.graph.initializer)
    for name in "ab":
        assert shape_of(result, name) == shape_of(other, name)
