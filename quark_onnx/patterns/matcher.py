"""Find the graphs of the table of patterns in a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.patterns.formula import Atom, Call, Product, Sum
from quark.onnx.patterns.pattern_table import PATTERNS, Pattern
from quark.onnx.patterns.readings import LOOKED_INTO, Constant, Readings

__all__ = ["Match", "Matcher"]

_LENGTH = 10  # nodes from x to the end of a pattern
_TOLERANCE = 1e-5  # relative: exporters write 1.41421 and 0.797885

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class Match:
    """A pattern in a graph.

    Attributes:
        x: the tensor that it is a function of.
        output: what its last node makes; nobody else sees the tensors in between.
        values: of the formula's constants, a float where it is one number; and the pattern's defaults.
        nodes: the first outputs of its nodes.
    """

    pattern: Pattern
    x: str
    output: str
    values: Mapping[str, Constant | str]
    nodes: frozenset[str]


@dataclass(frozen=True)
class _Found:
    """What a formula, as far as it was compared, and the graph have in common."""

    x: str = ""
    constants: Mapping[str, Constant] = field(default_factory=dict)
    nodes: frozenset[str] = frozenset()

    def through(self, nodes: frozenset[str]) -> _Found:
        return replace(self, nodes=self.nodes | nodes)

    def bound(self, name: str, value: Constant) -> _Found | None:
        """The match with the value of a constant; None where it has another one already."""
        if name in self.constants:
            return self if np.array_equal(self.constants[name], value) else None
        return replace(self, constants={**self.constants, name: value})


class Matcher:
    """Compares formulas with a graph.

    Attributes:
        graph: that one.
    """

    def __init__(self, graph: Dataflow, patterns: Iterable[Pattern] = PATTERNS) -> None:
        self.graph = graph
        self._readings = Readings(graph)
        self._patterns = tuple(patterns)
        self._operators = LOOKED_INTO.union(*(pattern.form.operators for pattern in self._patterns))

    def at(self, output: str, *, x: str = "") -> Iterator[Match]:
        """The patterns whose last node makes `output`, as functions of any tensor, or of `x`; the likeliest first."""
        for pattern in self._patterns:
            search = _Search(self._readings, frozenset(pattern.defaults))
            seen = set[tuple[str, frozenset[str]]]()  # most graphs can be read in several ways
            for found in search.sum(pattern.form, output, _Found(x)):
                if (found.x, found.nodes) not in seen and self._is_closed(found, output):
                    seen.add((found.x, found.nodes))
                    yield Match(pattern, found.x, output, {**pattern.defaults, **found.constants}, found.nodes)

    def behind(self, x: str) -> Iterator[Match]:
        """The patterns that are functions of `x` and alone read it, the shortest first."""
        readers = {node.output[0] for node in self.graph.readers(x)}
        outputs = [] if x in self.graph.outputs else [x]
        seen = set[str]()
        for _ in range(_LENGTH):
            seen.update(outputs)
            nodes = (node for name in outputs for node in self.graph.readers(name) if node.op_type in self._operators)
            outputs = list(dict.fromkeys(node.output[0] for node in nodes if node.output[0] not in seen))
            for output in outputs:
                yield from (match for match in self.at(output, x=x) if readers <= match.nodes)

    def _is_closed(self, found: _Found, output: str) -> bool:
        """Whether the model needs nothing of what the nodes make but the output."""
        if output not in found.nodes or found.x in found.nodes:
            return False
        inner = {name for node in found.nodes for name in self.graph.producer[node].output if name != output}
        readers = (node for name in inner for node in self.graph.readers(name))
        return not inner & set(self.graph.outputs) and all(node.output[0] in found.nodes for node in readers)


class _Search:
    """Every way in which a formula fits. Each method gets what was found before, and yields what there is with it.

    Args:
        optional: the constants that the graph need not have.
    """

    def __init__(self, readings: Readings, optional: frozenset[str]) -> None:
        self._readings = readings
        self._optional = optional

    def sum(self, wanted: Sum, tensor: str, found: _Found) -> Iterator[_Found]:
        if len(wanted.terms) == 1 and not wanted.number and not wanted.constant:
            yield from self._product(wanted.terms[0], (1.0, tensor), found)
            return
        for given in self._readings.sums(tensor, len(wanted.terms)):
            number = 0.0 if given.constant is None else given.constant
            after = self._constant(wanted.constant, number, wanted.number, found.through(given.nodes))
            if after is not None:
                yield from _assigned(wanted.terms, given.terms, self._product, after)

    def _product(self, wanted: Product, given: tuple[float, str], found: _Found) -> Iterator[_Found]:
        factor, tensor = given
        for reading in self._readings.products(tensor, len(wanted.factors)):
            number = factor if reading.constant is None else factor * reading.constant
            after = self._constant(wanted.constant, number / wanted.number, 1.0, found.through(reading.nodes))
            if after is not None:
                yield from _assigned(wanted.factors, tuple(reading.factors.items()), self._power, after)

    def _power(self, wanted: tuple[Atom, float], given: tuple[str, float], found: _Found) -> Iterator[_Found]:
        (atom, exponent), (tensor, power) = wanted, given
        if exponent != power:
            return
        match atom:
            case Sum():
                yield from self.sum(atom, tensor, found)
            case Call():
                for operator in self._readings.operators(tensor, atom.op):
                    after: _Found | None = found.through(operator.nodes)
                    for name_or_number, value in zip(atom.parameters, operator.parameters, strict=True):
                        after = after and self._parameter(name_or_number, value, after)
                    if after is not None:
                        yield from self.sum(atom.argument, operator.argument, after)
            case _ if tensor == (found.x or tensor):
                yield replace(found, x=tensor)

    def _parameter(self, wanted: float | str, value: Constant, found: _Found) -> _Found | None:
        if isinstance(wanted, str):
            return found.bound(wanted, value)
        return found if _is(value, wanted) else None

    def _constant(self, name: str, value: Constant, neutral: float, found: _Found) -> _Found | None:
        """The match with a constant; one without name must be `neutral`, the others only where they may lack."""
        if not name:
            return found if _is(value, neutral) else None
        lacks = isinstance(value, float) and value == neutral
        return None if lacks and name not in self._optional else found.bound(name, value)


def _is(value: Constant, number: float) -> bool:
    return isinstance(value, float) and math.isclose(value, number, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE**2)


def _assigned(
    wanted: tuple[_T, ...], given: tuple[_U, ...], compare: Callable[[_T, _U, _Found], Iterator[_Found]], found: _Found
) -> Iterator[_Found]:
    """Each of what is wanted with another one of what is given, none left over, in every order."""
    if not wanted and not given:
        yield found
    for i, candidate in enumerate(given if len(wanted) == len(given) else ()):
        for after in compare(wanted[0], candidate, found):
            yield from _assigned(wanted[1:], given[:i] + given[i + 1 :], compare, after)
