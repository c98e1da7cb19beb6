"""What a pass takes, against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import build

from quark.onnx.graph.known_shapes import with_inferred_shapes
from quark.onnx.graph.live_bytes import live_bytes

SIZE = 4 * 10  # bytes of a tensor of a sample


@pytest.mark.parametrize(
    ("nodes", "tensors"),
    [
        ("a = Relu(x) b = Relu(a) y = Relu(b)", 2),  # what is read and what is made
        ("a = Relu(x) b = Relu(a) y = Add(b, x)", 3),  # the input waits
        ("a = Relu(x) b = Add(a, w) y = Add(b, w)", 2),  # constants are no tensors of a sample
        ("a = Relu(x) unread = Neg(x) y = Relu(a)", 3),  # a tensor that nobody reads is gone after its node
        ("a = Relu(x) y = Concat<axis=1>(a, a, a)", 4),
    ],
)
def test_tensors_live_from_their_node_to_their_last_reader(nodes: str, tensors: int) -> None:
    length = 30 if "Concat" in nodes else 10
    model = build(f"(float[N,10] x) => (float[N,{length}] y) {{ {nodes} }}", w=np.ones(10))
    assert live_bytes(with_inferred_shapes(model)) == SIZE * tensors


def test_outputs_live_to_the_end() -> None:
    model = build("(float[N,10] x) => (float[N,10] a, float[N,10] y) { a = Relu(x) b = Relu(a) y = Relu(b) }")
    assert live_bytes(with_inferred_shapes(model)) == SIZE * 3


def test_unknown_shapes_count_as_nothing() -> None:
    model = build("(float[N,M] x) => (float[N,M] y) { a = Relu(x) y = Relu(a) }")
    assert live_bytes(model) == 0
