"""Which nodes of a model a configuration names: by name, by regular expression, or as a subgraph."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from quark.onnx.errors import ConfigError

from .validate import Check, nearest, problem, strings

__all__ = ["NodeChoice", "NodeChoices", "NodeGraph", "chosen_nodes", "node_choices"]

Subgraph = tuple[Sequence[str], Sequence[str]]
NodeChoice = str | Subgraph


@dataclass(frozen=True)
class NodeGraph:
    """The nodes of a model, in its order.

    Attributes:
        names: some may be empty, or the same.
        readers: of each node, the positions of the nodes that read its outputs.
    """

    names: tuple[str, ...]
    readers: tuple[tuple[int, ...], ...]


def chosen_nodes(where: str, choice: NodeChoice, model: NodeGraph, *, original: NodeGraph | None = None) -> list[str]:
    """The nodes that one choice names, in the model's order.

    Args:
        where: the configuration's field, for messages.
        choice: a node's name; a regular expression that starts with "^", matched from the start of a name; or
            ([start nodes], [end nodes]): the nodes on all ways from a start to an end, these included.
        original: the model as the user knows it, of which `model` is a simplified form: a choice may name nodes that
            have gone, as the ends of a subgraph for example.

    Raises:
        ConfigError: the choice names no node of `model`, or there is no such subgraph.
    """
    graphs = (model,) if original is None else (model, original)
    if isinstance(choice, str):
        named = {name for graph in graphs for name in _matching(choice, graph.names)}
    else:
        named = _between(where, choice, graphs)
    chosen = [name for name in model.names if name in named]
    if not chosen:
        raise ConfigError(problem(where, choice, _expected(choice, named, model)))
    return chosen


def _matching(choice: str, names: Iterable[str]) -> set[str]:
    if choice.startswith("^"):
        return {name for name in names if name and re.match(choice, name)}
    return {choice} & set(names)


def _between(where: str, choice: Subgraph, graphs: Sequence[NodeGraph]) -> set[str]:
    """The nodes of a subgraph, in whichever of the graphs hold all its starts and ends."""
    starts, ends = choice
    known = sorted({name for graph in graphs for name in graph.names if name})
    for name in (*starts, *ends):
        if name not in known:
            raise ConfigError(problem(where, choice, f"the names of nodes; {name!r} is none, {nearest(name, known)}"))
    whole = [graph for graph in graphs if {*starts, *ends} <= set(graph.names)]
    found: set[str] = set()
    for graph in whole:
        writers: list[list[int]] = [[] for _ in graph.names]
        for node, readers in enumerate(graph.readers):
            for reader in readers:
                writers[reader].append(node)
        after = _reached([i for i, name in enumerate(graph.names) if name in starts], graph.readers)
        before = _reached([i for i, name in enumerate(graph.names) if name in ends], writers)
        found.update(graph.names[i] for i in after & before)
    for name in (*starts, *ends):
        if name not in found:
            side = "a start, but it leads to no end" if name in starts else "an end, but no start leads to it"
            raise ConfigError(problem(where, choice, f"starts that lead to the ends: {name!r} is {side}"))
    return found - {""}


def _reached(nodes: Iterable[int], following: Sequence[Collection[int]]) -> set[int]:
    reached: set[int] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in reached:
            reached.add(node)
            waiting += following[node]
    return reached


def _expected(choice: NodeChoice, named: Collection[str], model: NodeGraph) -> str:
    if named:
        return "a node that is left after the model was prepared: what it names became part of other nodes"
    text = str(choice)
    kind = "a regular expression that matches a node" if text.startswith("^") else "the name of a node"
    return f"{kind}; {nearest(text.lstrip('^'), sorted(filter(None, model.names)))}"


def _node_choice(choice: object) -> NodeChoice:
    if isinstance(choice, str):
        if not choice:
            raise ValueError
        if choice.startswith("^"):
            _compile(choice)
        return choice
    if not isinstance(choice, (list, tuple)) or len(choice) != 2:
        raise TypeError
    starts, ends = (strings("").convert(side) for side in choice)
    return starts, ends


def _compile(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"regular expressions that compile; {pattern!r} does not: {error}") from None


def _node_choices(value: object) -> tuple[NodeChoice, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(_node_choice(choice) for choice in value)


node_choices = Check(
    'a list of node names, regular expressions that start with "^", and ([start nodes], [end nodes]) pairs',
    _node_choices,
)
NodeChoices = Annotated[tuple[NodeChoice, ...], node_choices]
