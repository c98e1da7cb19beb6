"""The ways to read a tensor of a graph as a sum, as a product, as a Clip, as an operator on one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import attributes

__all__ = ["LOOKED_INTO", "Constant", "Factors", "Operator", "Readings", "Terms"]

Constant: TypeAlias = float | NDArray[Any]  # a float: one number; an array: any other, as the graph has it

LOOKED_INTO = frozenset(("Add", "Sub", "Neg", "Mul", "Div", "Reciprocal", "Sqrt", "Pow", "Relu", "Clip", "Min", "Max"))
_DEPTH = 5  # nodes above each other that are read as one sum, product or Clip


@dataclass(frozen=True)
class Terms:
    """constant + number * tensor + ...; nodes: the first outputs of those that compute it from the tensors."""

    terms: tuple[tuple[float, str], ...] = ()
    constant: Constant | None = None
    nodes: frozenset[str] = frozenset()

    def times(self, number: float) -> Terms:
        constant = None if self.constant is None else number * self.constant
        return Terms(tuple((number * n, tensor) for n, tensor in self.terms), constant, self.nodes)

    def plus(self, other: Terms, node: str) -> Terms:
        constant = _joined(self.constant, other.constant, np.add)
        return Terms(self.terms + other.terms, constant, self.nodes | other.nodes | {node})


@dataclass(frozen=True)
class Factors:
    """constant * tensor ** exponent * ...; nodes: as of `Terms`."""

    factors: Mapping[str, float] = field(default_factory=dict)
    constant: Constant | None = None
    nodes: frozenset[str] = frozenset()

    def power(self, exponent: float) -> Factors:
        with np.errstate(all="ignore"):
            constant = None if self.constant is None else _constant(np.power(self.constant, exponent))
        return Factors({t: e * exponent for t, e in self.factors.items()}, constant, self.nodes)

    def times(self, other: Factors, node: str) -> Factors:
        factors = dict(self.factors)
        for tensor, exponent in other.factors.items():
            factors[tensor] = factors.get(tensor, 0.0) + exponent
        constant = _joined(self.constant, other.constant, np.multiply)
        return Factors(factors, constant, self.nodes | other.nodes | {node})


@dataclass(frozen=True)
class Operator:
    """An operator on one tensor.

    Attributes:
        parameters: of HardSigmoid alpha and beta, of ReduceMean its axes, of others none.
    """

    argument: str
    parameters: tuple[Constant, ...]
    nodes: frozenset[str]


class Readings:
    """A graph whose tensors can be read in several ways: some or all of the nodes above one looked into, or none."""

    def __init__(self, graph: Dataflow) -> None:
        self.graph = graph
        self._tensors = graph.initializers
        self._constants: dict[str, Constant | None] = {}
        self._sums: dict[tuple[str, int, int], tuple[Terms, ...]] = {}
        self._products: dict[tuple[str, int, int], tuple[Factors, ...]] = {}

    def constant(self, tensor: str) -> Constant | None:
        """The value of an initializer or Constant node; None for any other tensor."""
        if tensor not in self._constants:
            self._constants[tensor] = self._read_constant(tensor)
        return self._constants[tensor]

    def sums(self, tensor: str, most: int, depth: int = _DEPTH) -> tuple[Terms, ...]:
        """Reads a tensor as sums of at most so many tensors: through Add, Sub, Neg, and Mul and Div by a number."""
        key = tensor, most, depth
        if key not in self._sums:
            readings = {(reading.terms, reading.nodes): reading for reading in self._read_sums(*key)}
            self._sums[key] = tuple(readings.values())
        return self._sums[key]

    def products(self, tensor: str, most: int, depth: int = _DEPTH) -> tuple[Factors, ...]:
        """Reads a tensor as products of powers of so many tensors at most: by Mul, Div, Neg, Reciprocal, Sqrt, Pow."""
        key = tensor, most, depth
        if key not in self._products:
            readings = {(*reading.factors.items(), reading.nodes): reading for reading in self._read_products(*key)}
            self._products[key] = tuple(readings.values())
        return self._products[key]

    def clips(self, tensor: str, depth: int = _DEPTH) -> Iterator[Operator]:
        """Reads a tensor as Clip, with the least and the greatest value as parameters: through Relu, Clip, Min, Max."""
        node = self._node(tensor)
        bounds = None if node is None else self._bounds(node)
        if node is None or bounds is None or not depth:
            return
        inner, low, high = bounds
        yield Operator(inner, (low, high), frozenset({node.output[0]}))
        for deeper in self.clips(inner, depth - 1):
            limits = tuple(min(max(limit, low), high) for limit in deeper.parameters if isinstance(limit, float))
            yield Operator(deeper.argument, limits, deeper.nodes | {node.output[0]})

    def operators(self, tensor: str, op: str) -> Iterator[Operator]:
        """Reads a tensor as operators of a type."""
        if op == "Clip":
            yield from self.clips(tensor)
            return
        node = self._node(tensor)
        parameters = None if node is None or node.op_type != op else self._parameters(node)
        if node is not None and parameters is not None:
            yield Operator(node.input[0], parameters, frozenset({node.output[0]}))

    def _node(self, tensor: str) -> onnx.NodeProto | None:
        node = self.graph.producer.get(tensor)
        return node if node is not None and node.domain in ("", "ai.onnx") and node.output[0] == tensor else None

    def _read_constant(self, tensor: str) -> Constant | None:
        if tensor in self._tensors:
            return _constant(numpy_helper.to_array(self._tensors[tensor]))
        node = self._node(tensor)
        return self.constant(node.input[0]) if node is not None and node.op_type == "Identity" else None

    def _read_sums(self, tensor: str, most: int, depth: int) -> Iterator[Terms]:
        value = self.constant(tensor)
        if value is not None:
            yield Terms(constant=value)
            return
        if most:
            yield Terms(((1.0, tensor),))
        node = self._node(tensor)
        if node is None or not depth:
            return
        match node.op_type:
            case "Add" | "Sub":
                sign = 1.0 if node.op_type == "Add" else -1.0
                for a in self.sums(node.input[0], most, depth - 1):
                    for b in self.sums(node.input[1], most - len(a.terms), depth - 1):
                        yield a.plus(b.times(sign), node.output[0])
            case "Neg" | "Mul" | "Div":
                for inner, number in self._multiples(node):
                    for a in self.sums(inner, most, depth - 1):
                        yield a.times(number).plus(Terms(), node.output[0])

    def _read_products(self, tensor: str, most: int, depth: int) -> Iterator[Factors]:
        value = self.constant(tensor)
        if value is not None:
            yield Factors(constant=value)
            return
        if most:
            yield Factors({tensor: 1.0})
        node = self._node(tensor)
        if node is None or not depth:
            return
        name = node.output[0]
        match node.op_type:
            case "Mul" | "Div":
                exponent = 1.0 if node.op_type == "Mul" else -1.0
                for a in self.products(node.input[0], most, depth - 1):
                    for b in self.products(node.input[1], most, depth - 1):
                        both = a.times(b.power(exponent), name)
                        if len(both.factors) <= most:
                            yield both
            case "Neg":
                for a in self.products(node.input[0], most, depth - 1):
                    yield a.times(Factors(constant=-1.0), name)
            case "Reciprocal" | "Sqrt" | "Pow":
                of_pow = self.constant(node.input[1]) if node.op_type == "Pow" else None
                exponent_of = {"Reciprocal": -1.0, "Sqrt": 0.5, "Pow": of_pow}[node.op_type]
                if isinstance(exponent_of, float):
                    for a in self.products(node.input[0], most, depth - 1):
                        yield a.power(exponent_of).times(Factors(), name)

    def _multiples(self, node: onnx.NodeProto) -> Iterator[tuple[str, float]]:
        """The tensors whose multiple by a number a node is."""
        if node.op_type == "Neg":
            yield node.input[0], -1.0
            return
        first, second = map(self.constant, node.input)
        if isinstance(second, float):
            yield node.input[0], second if node.op_type == "Mul" else 1 / second if second else math.inf
        if isinstance(first, float) and node.op_type == "Mul":
            yield node.input[1], first

    def _bounds(self, node: onnx.NodeProto) -> tuple[str, float, float] | None:
        match node.op_type:
            case "Relu":
                return node.input[0], 0.0, math.inf
            case "Clip":
                given = attributes(node)
                low = self._optional(node, 1, given.get("min", -math.inf))
                high = self._optional(node, 2, given.get("max", math.inf))
                if isinstance(low, float) and isinstance(high, float):
                    return node.input[0], low, high
            case "Min" | "Max" if len(node.input) == 2:
                for tensor, other in (node.input, reversed(node.input)):
                    limit = self.constant(other)
                    if isinstance(limit, float):
                        return (tensor, -math.inf, limit) if node.op_type == "Min" else (tensor, limit, math.inf)
        return None

    def _optional(self, node: onnx.NodeProto, index: int, default: float) -> Constant | None:
        given = index < len(node.input) and node.input[index]
        return self.constant(node.input[index]) if given else default

    def _parameters(self, node: onnx.NodeProto) -> tuple[Constant, ...] | None:
        given = attributes(node)
        match node.op_type:
            case "HardSigmoid":
                return given.get("alpha", 0.2), given.get("beta", 0.5)
            case "ReduceMean":
                axes = self.constant(node.input[1]) if len(node.input) > 1 else given.get("axes")
                return None if axes is None or not given.get("keepdims", 1) else (np.atleast_1d(axes),)
        return ()


def _constant(value: Any) -> Constant:
    """One number, of however many axes, as a float."""
    array = np.asarray(value)
    return float(array.reshape(())) if array.size == 1 and array.dtype.kind in "fiu" else array


def _joined(a: Constant | None, b: Constant | None, join: Callable[[Any, Any], Any]) -> Constant | None:
    if a is None or b is None:
        return b if a is None else a
    return _constant(join(a, b))
