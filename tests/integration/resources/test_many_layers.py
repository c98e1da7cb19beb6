"""The work of a run grows with the number of layers, not with its square. It is counted, not timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from reference.operation_count import operations

from quark.onnx.fast_finetune.walk import Peek, Walk
from quark.onnx.inference.sessions import Engine
from quark.onnx.plan.build import build_plan
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.stores.batch_store import MemoryStore

LAYERS = (100, 200, 400)
MOST_GROWTH = 2.3  # from one to the next


def chain(layers: int) -> onnx.ModelProto:
    """Blocks of a Conv, a Relu, a Conv, and a shortcut around them."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32).reshape(4, 4, 1), "w")
    nodes, tensors, x = list[onnx.NodeProto](), list[onnx.TensorProto](), "x"
    for index in range(layers // 2):
        a, r, b, s = (f"{name}{index}" for name in "arbs")
        for name in (f"w_{a}", f"w_{b}"):
            tensors.append(onnx.TensorProto())
            tensors[-1].CopyFrom(weight)
            tensors[-1].name = name
        nodes += [
            helper.make_node("Conv", [x, f"w_{a}"], [a], name=f"conv_{a}"),
            helper.make_node("Relu", [a], [r], name=f"relu_{r}"),
            helper.make_node("Conv", [r, f"w_{b}"], [b], name=f"conv_{b}"),
            helper.make_node("Add", [x, b], [s], name=f"add_{s}"),
        ]
        x = s
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4, 6]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.fixture(scope="module")
def models() -> list[tuple[onnx.ModelProto, onnx.ModelProto]]:
    """Float and quantized, of each number of layers."""
    floats = [chain(layers) for layers in LAYERS]
    return [(model, insert_qdq(model, ranges(model), {}, QdqOptions())) for model in floats]


def ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(calibration_tensors(model, QdqOptions()), (-1.0, 1.0))


def inserted(model: onnx.ModelProto, _: onnx.ModelProto) -> None:
    insert_qdq(model, ranges(model), {}, QdqOptions())


def planned(model: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    assert len(build_plan(model, quantized, ("Conv",)).layers) in LAYERS


def walked(_: onnx.ModelProto, quantized: onnx.ModelProto) -> None:
    stops = [(node.input[0],) for node in quantized.graph.node if node.op_type == "Conv"]
    walk = Walk("quantized", quantized, stops, MemoryStore(), Engine(1))
    walk.put_inputs(0, {"x": np.zeros((2, 4, 6), np.float32)})
    for _ in stops:
        assert isinstance(walk.advance(), Peek)
        walk.set_frontier(0, walk.live())  # as if it had run
    assert not walk.live()


@pytest.mark.parametrize("phase", [inserted, planned, walked])
def test_twice_the_layers_are_twice_the_work(
    models: list[tuple[onnx.ModelProto, onnx.ModelProto]],
    phase: Callable[[onnx.ModelProto, onnx.ModelProto], None],
) -> None:
    counts = [operations(partial(phase, *pair)) for pair in models]
    assert all(after < MOST_GROWTH * before for before, after in pairwise(counts)), counts
