"""Which nodes of a model a configuration names: by name, by regular expression, or as a subgraph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated

from quark.onnx.errors import ConfigError, UnsupportedError

from .validate import Check, nearest, problem, strings

Subgraph = tuple[Sequence[str], Sequence[str]]
NodeChoice = str | Subgraph


def selected_nodes(where: str, choices: Iterable[NodeChoice], node_names: Iterable[str]) -> set[str]:
    """The nodes that the choices name.

    Args:
        where: the configuration's field, for messages.
        choices: node names, and regular expressions that start with "^", matched from the start of a name.
        node_names: the names of all nodes of the model.

    Raises:
        ConfigError: a choice names no node.
        UnsupportedError: a choice is a subgraph.
    """
    nodes = set(node_names)
    selected: set[str] = set()
    for choice in choices:
        if not isinstance(choice, str):
            expected = "node names and regular expressions: subgraphs are not supported yet"
            raise UnsupportedError(problem(where, choice, expected))
        if choice.startswith("^"):
            matched = {node for node in nodes if re.match(choice, node)}
            expected = "a regular expression that matches a node"
        else:
            matched = nodes & {choice}
            expected = "the name of a node"
        if not matched:
            raise ConfigError(problem(where, choice, f"{expected}; {nearest(choice.lstrip('^'), sorted(nodes))}"))
        selected |= matched
    return selected


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
