"""The flops of the bound, against numbers worked out by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bound")


def one_node(
    op: str, x: tuple[int | str, ...], weight: tuple[int, ...], rank: int, **attributes: Any
) -> onnx.ModelProto:
    node = helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.ones(weight, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


@pytest.mark.parametrize(
    ("op", "x", "weight", "attributes", "sizes", "flops"),
    [
        # rows, K, O, groups; 2 rows K (K/2 + O) groups
        ("Conv", (1, 3, 8, 8), (4, 3, 3, 3), {"pads": [1] * 4, "strides": [2, 2]}, (16, 27, 4, 1), 15120),
        ("Conv", (1, 4, 4, 4), (4, 1, 3, 3), {"pads": [1] * 4, "group": 4}, (16, 9, 1, 4), 6336),
        ("Conv", (1, 4, 10), (6, 2, 3), {"group": 2, "dilations": [2]}, (6, 6, 3, 2), 864),
        ("ConvTranspose", (1, 2, 3, 3), (2, 5, 2, 2), {"strides": [2, 2]}, (36, 2, 5, 1), 864),
        ("ConvTranspose", (1, 4, 5), (4, 3, 2), {"group": 2}, (6, 4, 3, 2), 480),
        ("Gemm", (1, 4), (4, 10), {}, (1, 4, 10, 1), 96),
        ("Gemm", (1, 4), (10, 4), {"transB": 1}, (1, 4, 10, 1), 96),
        ("MatMul", (1, 5, 4), (4, 6), {}, (5, 4, 6, 1), 320),
        ("MatMul", (2, 5, 4), (2, 4, 6), {}, (5, 4, 6, 2), 640),
    ],
)
def test_flops_of_one_layer(
    bound: Any,
    op: str,
    x: tuple[int, ...],
    weight: tuple[int, ...],
    attributes: dict[str, Any],
    sizes: tuple[int, ...],
    flops: int,
) -> None:
    model = one_node(op, ("batch", *x[1:]), weight, len(x), **attributes)
    (size,) = bound.layer_sizes(model, x)
    assert (size.rows, size.inputs, size.outputs, size.groups) == sizes
    assert size.moment_flops == flops


def test_the_model_is_not_changed(bound: Any) -> None:
    model = one_node("Gemm", ("batch", 4), (4, 10), 2)
    before = model.SerializeToString()
    bound.layer_sizes(model, (1, 4))
    assert model.SerializeToString() == before


def test_products_of_activations_and_constant_vectors_have_no_moments(bound: Any) -> None:
    square = one_node("MatMul", ("batch", 4, 4), (4, 4), 3)
    square.graph.node[0].input[1] = "x"
    assert bound.layer_sizes(square, (1, 4, 4)) == []
    assert bound.layer_sizes(one_node("MatMul", ("batch", 4), (4,), 1), (1, 4)) == []


def test_a_shape_that_stays_open_is_an_error(bound: Any) -> None:
    model = one_node("MatMul", ("batch", "tokens", 4), (4, 6), 3)
    with pytest.raises(ValueError, match="'y' open"):
        bound.layer_sizes(model, (1, 0, 4))


def test_a_pass_returns_one_of_the_batches(bound: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(one_node("Gemm", ("batch", 4), (4, 10), 2), path)
    seconds, batch = bound.pass_seconds(str(path), np.ones((9, 4), np.float32), optimise=False)
    assert seconds > 0
    assert batch in bound.BATCHES
