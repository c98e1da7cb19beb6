"""The walk against one run of the whole model: same tensors, every node once, nothing kept without need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.inner_tensors import inner_tensors
from reference.random_graphs import SIDE, RandomGraph, random_graphs
from small_models import Arrays, build

from quark.onnx.errors import FinetuneError
from quark.onnx.fast_finetune import walk as walk_module
from quark.onnx.fast_finetune.walk import Walk
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.qdq.write_back import write_integers
from quark.onnx.stores.batch_store import BatchStore, FileStore, MemoryStore


class WatchedStore(MemoryStore):
    """Knows what it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[tuple[str, str, int]] = set()

    def put(self, key: tuple[str, str, int], array: Any) -> None:
        super().put(key, array)
        self.held.add(key)

    def drop(self, key: tuple[str, str, int]) -> None:
        super().drop(key)
        self.held.remove(key)


def batches_of(graph: RandomGraph, sizes: Iterable[int]) -> list[Arrays]:
    rng = np.random.default_rng(0)
    return [
        {name: rng.standard_normal((n, graph.channels[name], SIDE, SIDE), np.float32) for name in graph.inputs}
        for n in sizes
    ]


def needed_for(model: onnx.ModelProto, wanted: Iterable[str], already_run: set[str]) -> set[str]:
    """The tensors among `wanted`, and those read by nodes that must still run for them."""
    producer = {name: node for node in model.graph.node for name in node.output}
    found, stack = set[str](), list(wanted)
    while stack:
        tensor = stack.pop()
        if tensor not in found:
            found.add(tensor)
            if tensor in producer and producer[tensor].name not in already_run:
                stack.extend(producer[tensor].input)
    return found


@st.composite
def walks(draw: st.DrawFn) -> tuple[RandomGraph, list[list[str]]]:
    """A graph, and tensors to stop at in any order."""
    graph = draw(random_graphs())
    tensors = st.sampled_from(sorted(graph.channels))
    return graph, draw(st.lists(st.lists(tensors, min_size=1, max_size=2), min_size=1, max_size=6))


def close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal but for the order of additions, which onnxruntime's float optimisation may change."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max(initial=0))


@settings(max_examples=40, deadline=None)
@given(walks())
def test_targets_nodes_and_frontier(walk_case: tuple[RandomGraph, list[list[str]]]):
    graph, stops = walk_case
    model = graph.model
    batches = batches_of(graph, (2, 2, 1))
    expected = [{**batch, **inner_tensors(model, batch)} for batch in batches]
    runs = Counter[str]()

    def counted(segment: onnx.ModelProto, engine: Engine) -> Any:
        runs.update(node.name for node in segment.graph.node)
        return session(segment, engine)

    store = WatchedStore()
    with mock.patch.object(walk_module, "session", counted):
        walk = Walk("float", model, stops, store, Engine(1))
        for index, batch in enumerate(batches):
            walk.put_inputs(index, batch)
        for position, targets in enumerate(stops):
            step = walk.advance()
            for index in range(len(batches)):
                found = step.run(index)
                assert set(found) == set(targets)
                for name in targets:
                    close(found[name], expected[index][name])
            needed = needed_for(model, chain(*stops[position + 1 :]), set(runs))
            for index in range(len(batches)):
                assert walk.frontier(index) <= needed
            assert store.held == {("float", n, i) for i in range(len(batches)) for n in walk.frontier(i)}
    assert not store.held
    dynamic = {node.name for node in graph.nodes if node.output[0] in graph.channels}
    ancestors = needed_for(model, chain(*stops), set())
    for node in graph.nodes:
        if node.name in dynamic:
            assert runs[node.name] == any(name in ancestors for name in node.output)


@settings(max_examples=25, deadline=None)
@given(walks())
def test_a_walk_that_must_not_grow_finds_the_same(walk_case: tuple[RandomGraph, list[list[str]]]):
    graph, stops = walk_case
    model = onnx.shape_inference.infer_shapes(graph.model)
    (batch,) = batches_of(graph, (2,))
    runs = Counter[str]()

    def counted(segment: onnx.ModelProto, engine: Engine) -> Any:
        runs.update(node.name for node in segment.graph.node)
        return session(segment, engine)

    store = WatchedStore()
    with mock.patch.object(walk_module, "session", counted):
        walks = [Walk(n, model, stops, store, Engine(1), most_growth=g) for n, g in (("free", np.inf), ("small", 0))]
        for walk in walks:
            walk.put_inputs(0, batch)
        for _ in stops:
            found, expected = (walk.advance().run(0) for walk in reversed(walks))
            for name, array in expected.items():
                close(found[name], array)
    assert not store.held
    assert max(runs.values(), default=0) <= 3  # once by the first walk


def test_a_walk_stays_where_its_frontier_would_grow_too_much():
    text = "(float[N,3] x) => (float[N,2] y) { a = MatMul(x, wide) b = Relu(a) y = MatMul(b, narrow) }"
    model = onnx.shape_inference.infer_shapes(build(text, wide=np.ones((3, 50)), narrow=np.ones((50, 2))))
    x = np.ones((4, 3), np.float32)
    for most, kept in ((187, "x"), (188, "a")):  # 4 (50 - 3) bytes
        store = WatchedStore()
        walk = Walk("float", model, [["a"], ["y"]], store, Engine(1), most_growth=most)
        walk.put_inputs(0, {"x": x})
        np.testing.assert_array_equal(walk.advance().run(0)["a"], np.full((4, 50), 3))
        assert store.held == {("float", kept, 0)}
        np.testing.assert_array_equal(walk.advance().run(0)["y"], np.full((4, 2), 150))
        assert not store.held


@settings(max_examples=15, deadline=None)
@given(walks())
def test_stores_agree(walk_case: tuple[RandomGraph, list[list[str]]]):
    graph, stops = walk_case
    batches = batches_of(graph, (2, 1))
    seen = []
    with MemoryStore() as memory, FileStore(None) as files:
        for store in (memory, files):
            walk = Walk("float", graph.model, stops, store, Engine(1))
            for index, batch in enumerate(batches):
                walk.put_inputs(index, batch)
            steps = (walk.advance() for _ in stops)
            seen.append([step.run(index) for step in steps for index in range(len(batches))])
    for a, b in zip(*seen, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@settings(max_examples=40, deadline=None)
@given(walks())
def test_looking_ahead(walk_case: tuple[RandomGraph, list[list[str]]]):
    """From every stop, the tensors of the last one; the walk then goes on as if nobody had looked."""
    graph, stops = walk_case
    batches = batches_of(graph, (2, 1))
    last = tuple(stops[-1])
    expected = [{**batch, **inner_tensors(graph.model, batch)} for batch in batches]
    store = WatchedStore()
    walk = Walk("float", graph.model, stops, store, Engine(1))
    for index, batch in enumerate(batches):
        walk.put_inputs(index, batch)
    for targets in stops:
        held = set(store.held)
        ahead = walk.ahead(last)
        for index in range(len(batches)):
            found = ahead.run(index)
            assert set(found) == set(last)
            for name in last:
                close(found[name], expected[index][name])
        assert store.held == held
        step = walk.advance()
        for index in range(len(batches)):
            found = step.run(index)
            for name in targets:
                close(found[name], expected[index][name])
    assert not store.held


QUANTIZED = """(float[N,2] x) => (float[N,2] y) {
    w1_real = DequantizeLinear(w1, scale)
    w2_real = DequantizeLinear(w2, scale)
    a = MatMul(x, w1_real)
    y = MatMul(a, w2_real)
}"""


def test_later_steps_see_integers_written_before_them():
    """As finetuning does it: layer by layer, each seeing the layers before it as they are by then."""
    model = build(QUANTIZED, w1=np.eye(2, dtype=np.int8), w2=np.eye(2, dtype=np.int8), scale=0.5)
    x = np.float32([[1, 2]])
    with MemoryStore() as store:
        walk = Walk("quantized", model, [["a"], ["y"]], store, Engine(1))
        walk.put_inputs(0, {"x": x})
        np.testing.assert_array_equal(walk.advance().run(0)["a"], x / 2)
        by_name = {tensor.name: tensor for tensor in model.graph.initializer}
        write_integers(by_name["w2"], np.array([[0, 4], [4, 0]], np.int32))
        np.testing.assert_array_equal(walk.advance().run(0)["y"], [[2, 1]])


def test_looking_ahead_sees_the_integers_of_that_moment():
    model = build(QUANTIZED, w1=np.eye(2, dtype=np.int8), w2=np.eye(2, dtype=np.int8), scale=0.5)
    with MemoryStore() as store:
        walk = Walk("quantized", model, [["x"], ["a"], ["y"]], store, Engine(1))
        walk.put_inputs(0, {"x": np.float32([[1, 2]])})
        walk.advance().run(0)  # as before the first layer
        by_name = {tensor.name: tensor for tensor in model.graph.initializer}
        np.testing.assert_array_equal(walk.ahead(("y",)).run(0)["y"], [[0.25, 0.5]])
        write_integers(by_name["w1"], np.array([[4, 0], [0, 4]], np.int32))
        np.testing.assert_array_equal(walk.ahead(("y",)).run(0)["y"], [[1, 2]])
        np.testing.assert_array_equal(walk.advance().run(0)["a"], [[2, 4]])
        write_integers(by_name["w1"], np.zeros((2, 2), np.int32))
        np.testing.assert_array_equal(walk.ahead(("y",)).run(0)["y"], [[1, 2]])  # the node has run


def test_two_graphs_share_a_store():
    doubled = build("(float[N] x) => (float[N] y) { a = Add(x, x) y = Relu(a) }")
    squared = build("(float[N] x) => (float[N] y) { a = Mul(x, x) y = Relu(a) }")
    x = np.float32([3, 4])
    with MemoryStore() as store:
        walks = [Walk(n, m, [["a"], ["y"]], store, Engine(1)) for n, m in (("a", doubled), ("b", squared))]
        for walk in walks:
            walk.put_inputs(0, {"x": x})
        for _ in range(2):
            first, second = (next(iter(walk.advance().run(0).values())) for walk in walks)
            np.testing.assert_array_equal(first, 2 * x)
            np.testing.assert_array_equal(second, x**2)


@pytest.mark.parametrize("noise", ["RandomNormal<shape=[2,3]>()", "RandomNormalLike(x)", "Bernoulli(x)"])
@pytest.mark.parametrize("most_growth", [np.inf, -1e6])
def test_a_random_node_runs_once(most_growth: float, noise: str):
    """Two stops behind the same noise see the same noise, also where running again would save bytes."""
    model = build(f"(float[N,3] x) => (float[N,3] y) {{ a = {noise} b = Neg(a) y = Add(b, x) }}")
    model = onnx.shape_inference.infer_shapes(model)
    with MemoryStore() as store:
        walk = Walk("float", model, [["a"], ["b"], ["y"]], store, Engine(1), most_growth=most_growth)
        x = np.full((2, 3), 0.5, np.float32)
        walk.put_inputs(0, {"x": x})
        a, b, y = (next(iter(walk.advance().run(0).values())) for _ in range(3))
    np.testing.assert_array_equal(b, -a)
    np.testing.assert_array_equal(y, b + x)


def test_integer_and_boolean_tensors_are_kept_in_their_types():
    model = build(
        """(int64[N] x) => (float[N] y) {
            even = Equal(x, zero)
            narrow = Cast<to=2>(x)
            chosen = Where(even, x, zero)
            y = Cast<to=1>(chosen)
        }""",
        zero=np.int64(0),
    )
    dtypes = []
    with MemoryStore() as store:
        walk = Walk("float", model, [["even", "narrow"], ["chosen"], ["y"]], store, Engine(1))
        walk.put_inputs(0, {"x": np.arange(3)})
        for _ in range(3):
            dtypes += [array.dtype for array in walk.advance().run(0).values()]
    assert dtypes == [np.bool_, np.uint8, np.int64, np.float32]


@pytest.mark.parametrize("make_store", [MemoryStore, lambda: FileStore(None)], ids=["memory", "files"])
def test_a_segment_that_cannot_run_names_its_target(make_store: Any):
    model = build("(float[N,3] x) => (float[N,M] y) { [fold] y = Reshape(x, shape) }", shape=np.array([2, 6]))
    store: BatchStore
    with make_store() as store:
        walk = Walk("float", model, [["y"]], store, Engine(1))
        walk.put_inputs(0, {"x": np.ones((3, 3), np.float32)})
        with pytest.raises(FinetuneError, match="cannot compute 'y' of the float graph"):
            walk.advance().run(0)
