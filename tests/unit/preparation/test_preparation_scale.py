"""The work of the preparation grows with the number of nodes, not with its square. It is counted, not timed."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from reference.operation_count import operations

from quark.onnx.inference.sessions import Engine
from quark.onnx.preparation.prepare import prepared_on

CONSTANTS = {
    "w": np.full((4, 4, 1), 0.25), "c": np.full((4, 1), 1.5), "one": np.ones(4), "three": 3.0, "zero": 0.0, "six": 6.0,
    "m": np.eye(6), "b": np.full(6, 0.5), "shape": np.array([-1, 4, 6]), "flat": np.array([-1, 24]),
}  # fmt: skip

# What a block makes of {x}, as (operator, inputs): its last one makes the next x.
BLOCKS = {
    "activations": [("Relu", "{x}"), ("Abs", "{x}")],
    "folded into layers": [("Conv", "{x} w"), ("BatchNormalization", "{x} one one one one"), ("Mul", "{x} c")],
    "Gemm": [("Reshape", "{x} flat6"), ("MatMul", "{x} m"), ("Add", "{x} b"), ("Reshape", "{x} shape")],
    "patterns": [("Add", "{x} three"), ("Clip", "{x} zero six"), ("Div", "{x} six")],
    "without effect": [("Identity", "{x}"), ("Reshape", "{x} flat"), ("Reshape", "{x} shape"), ("Relu", "{x}")],
    "constants": [("Neg", "c"), ("Mul", "{x} {last}")],
}


def chain(block: list[tuple[str, str]], times: int) -> onnx.ModelProto:
    nodes, x, last = [], "x", ""
    for i in range(times):
        for k, (operator, reads) in enumerate(block):
            inputs = reads.format(x=x, last=last).split()
            last = f"t{i}_{k}"
            nodes.append(helper.make_node(operator, inputs, [last]))
            x = x if operator == "Neg" else last
    used = {name for node in nodes for name in node.input}
    constants = {**CONSTANTS, "flat6": np.array([-1, 6])}
    tensors = [
        numpy_helper.from_array(array.astype(np.float32) if array.dtype.kind == "f" else array, name)
        for name, array in ((name, np.asarray(value)) for name, value in constants.items())
        if name in used
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4, 6]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_twice_the_nodes_are_twice_the_work(block: list[tuple[str, str]]) -> None:
    item = {"x": np.full((2, 4, 6), 0.5, np.float32)}
    counts = []
    for times in (40, 80):
        model = chain(block, times)
        counts.append(operations(partial(prepared_on, model, [item], Engine(1))))
        assert prepared_on(model, [item], Engine(1)).notes == ()
    assert counts[1] < 2.3 * counts[0]
