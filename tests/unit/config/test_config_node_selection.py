"""The nodes that a configuration names, against paths enumerated one by one."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import build, residual_cnn

from quark.onnx.config.node_selection import NodeChoice, NodeGraph, chosen_nodes
from quark.onnx.errors import ConfigError
from quark.onnx.graph.node_graph import node_graph

NODES = ("conv1", "conv2", "layer1.conv", "layer2.conv", "head/dense")
GRAPH = NodeGraph(NODES, ((1,), (2, 4), (3,), (), ()))


@pytest.mark.parametrize(
    ("choice", "nodes"),
    [
        ("conv1", ["conv1"]),
        ("^layer.*", ["layer1.conv", "layer2.conv"]),
        ("^conv", ["conv1", "conv2"]),
        ("^.*conv$", ["layer1.conv", "layer2.conv"]),
        ((["conv1"], ["layer1.conv"]), ["conv1", "conv2", "layer1.conv"]),
        ((("conv2",), ("layer2.conv", "head/dense")), ["conv2", "layer1.conv", "layer2.conv", "head/dense"]),
        ((["conv2"], ["conv2"]), ["conv2"]),
    ],
)
def test_choices(choice: NodeChoice, nodes: list[str]) -> None:
    assert chosen_nodes("here", choice, GRAPH) == nodes


@given(st.lists(st.text("ab/.:*( é", min_size=1), min_size=1, unique=True), st.data())
def test_a_plain_name_chooses_exactly_itself(nodes: list[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sampled_from(nodes))
    assert chosen_nodes("here", chosen, NodeGraph(tuple(nodes), ((),) * len(nodes))) == [chosen]


@st.composite
def graphs(draw: st.DrawFn) -> NodeGraph:
    count = draw(st.integers(2, 6))
    edges = draw(st.sets(st.sampled_from([(a, b) for a, b in product(range(count), repeat=2) if a < b])))
    readers = tuple(tuple(sorted(b for a, b in edges if a == node)) for node in range(count))
    return NodeGraph(tuple("abcdef"[:count]), readers)


def ways(graph: NodeGraph, start: int, end: int) -> list[set[int]]:
    if start == end:
        return [{start}]
    return [{start} | rest for reader in graph.readers[start] for rest in ways(graph, reader, end)]


@given(graphs(), st.data())
def test_a_subgraph_is_all_nodes_on_all_ways(graph: NodeGraph, data: st.DataObject) -> None:
    some = st.lists(st.sampled_from(graph.names), min_size=1, max_size=2, unique=True)
    starts, ends = data.draw(some, label="starts"), data.draw(some, label="ends")
    position = graph.names.index
    found = [way for s, e in product(starts, ends) for way in ways(graph, position(s), position(e))]
    expected = set().union(*found)
    if {position(name) for name in (*starts, *ends)} <= expected:
        chosen = chosen_nodes("here", (starts, ends), graph)
        assert chosen == [name for i, name in enumerate(graph.names) if i in expected]
    else:
        with pytest.raises(ConfigError, match="starts that lead to the ends"):
            chosen_nodes("here", (starts, ends), graph)


def test_nodes_that_were_merged_still_bound_a_subgraph() -> None:
    original = NodeGraph(("conv1", "bn1", "relu1", "", "conv2"), ((1,), (2,), (3,), (4,), ()))
    prepared = NodeGraph(("conv1", "relu1", "Identity_0", "conv2"), ((1,), (2,), (3,), ()))
    assert chosen_nodes("here", (["bn1"], ["conv2"]), prepared, original=original) == ["relu1", "conv2"]
    assert chosen_nodes("here", "^.*1$", prepared, original=original) == ["conv1", "relu1"]
    with pytest.raises(ConfigError, match="here: got 'bn1', expected a node that is left after"):
        chosen_nodes("here", "bn1", prepared, original=original)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("conv3", "here: got 'conv3', expected the name of a node; did you mean 'conv2' or 'conv1'"),
        ("layer.*", "here: got 'layer.*', expected the name of a node; did you mean 'layer"),
        ("^Conv1$", "here: got .* expected a regular expression that matches a node; did you mean 'conv1'"),
        ("xyz", "expected the name of a node; known: conv1, conv2, head/dense, layer1.conv, layer2.conv$"),
        ((["conv1"], ["conv9"]), "the names of nodes; 'conv9' is none, did you mean 'conv2' or 'conv1'"),
        ((["layer1.conv"], ["head/dense"]), "starts that lead to the ends: 'layer1.conv' is a start, but it leads to"),
        ((["conv1"], ["conv2", "conv1"]), None),
        ((["conv2"], ["conv2", "conv1"]), "'conv1' is an end, but no start leads to it"),
    ],
)
def test_what_is_not_there_is_said_with_the_nearest(choice: NodeChoice, message: str | None) -> None:
    if message is None:
        assert chosen_nodes("here", choice, GRAPH) == ["conv1", "conv2"]
        return
    with pytest.raises(ConfigError, match=message):
        chosen_nodes("here", choice, GRAPH)


def test_the_graph_of_a_model() -> None:
    graph = node_graph(residual_cnn())
    readers = {name: [graph.names[i] for i in graph.readers[k]] for k, name in enumerate(graph.names)}
    assert graph.names[:3] == ("stem", "bn1", "relu1")
    assert readers["relu1"] == ["conv2", "add"]
    assert readers["plus"] == []


def test_a_body_reads_for_its_node() -> None:
    model = build(
        """(float[N,3] x, bool go) => (float[N,3] y) {
            [before] h = Relu(x)
            [choose] y = If (go) <then_branch = g () => (float[N,3] t) { t = Neg(h) },
                                  else_branch = g () => (float[N,3] e) { e = Identity(h) }>
        }"""
    )
    assert node_graph(model).readers == ((1,), ())
