"""Formulas as sums of products, the form in which two ways to write one function are the same."""

from __future__ import annotations

import ast
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

__all__ = ["Atom", "Call", "Product", "Sum", "parse"]


@dataclass(frozen=True)
class Sum:
    """terms[0] + terms[1] + ... + number + constant.

    Attributes:
        constant: the name of a constant whose value the formula leaves open; "": none.
    """

    terms: tuple[Product, ...] = ()
    number: float = 0.0
    constant: str = ""

    @property
    def operators(self) -> frozenset[str]:
        """The operators that it calls."""
        atoms = [atom for term in self.terms for atom, _ in term.factors]
        calls = [atom for atom in atoms if isinstance(atom, Call)]
        inner = [atom for atom in atoms if isinstance(atom, Sum)] + [call.argument for call in calls]
        return frozenset(call.op for call in calls).union(*(part.operators for part in inner))


@dataclass(frozen=True)
class Product:
    """number * constant * factors[0][0] ** factors[0][1] * ...; each factor comes once."""

    factors: tuple[tuple[Atom, float], ...] = ()
    number: float = 1.0
    constant: str = ""


@dataclass(frozen=True)
class Call:
    """An ONNX operator.

    Attributes:
        parameters: numbers, or names of constants that the formula leaves open.
    """

    op: str
    argument: Sum
    parameters: tuple[float | str, ...] = ()


Atom: TypeAlias = Sum | Call | str  # a str: the tensor that a formula is a function of


def parse(text: str) -> Sum:
    """The last line of a text in Python's notation; the lines before it give names to parts.

    `x` is a tensor, any other unknown name a constant; sqrt and pi are numbers; all that is called beside is an
    operator, Sqrt a power, Relu a Clip. Numbers are multiplied into sums.
    """
    known = {"x": _alone("x"), "pi": Sum(number=math.pi)}
    *named, last = ast.parse(textwrap.dedent(text)).body
    for line in named:
        assert isinstance(line, ast.Assign)
        assert isinstance(line.targets[0], ast.Name)
        known[line.targets[0].id] = _sum(line.value, known)
    assert isinstance(last, ast.Expr)
    return _sum(last.value, known)


def _sum(node: ast.expr, known: Mapping[str, Sum]) -> Sum:
    match node:
        case ast.Constant(value=int() | float() as number):
            return Sum(number=float(number))
        case ast.Name(id=name):
            return known.get(name) or Sum(constant=name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _times(Sum(number=-1.0), _sum(operand, known))
        case ast.Call(func=ast.Name(id=op), args=[first, *others]):
            return _call(op, _sum(first, known), [_sum(other, known) for other in others])
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _sum(left, known), _sum(right, known)
            match op:
                case ast.Add():
                    return _plus(a, b)
                case ast.Sub():
                    return _plus(a, _times(Sum(number=-1.0), b))
                case ast.Mult():
                    return _times(a, b)
                case ast.Div():
                    return _times(a, _power(b, -1.0))
                case ast.Pow():
                    return _power(a, b.number)
    raise ValueError(f"no formula: {ast.unparse(node)}")


def _call(op: str, argument: Sum, others: list[Sum]) -> Sum:
    if op in ("sqrt", "Sqrt"):
        return _power(argument, 0.5)
    if op == "Relu":
        op, others = "Clip", [Sum(number=0.0), Sum(number=math.inf)]
    return _alone(Call(op, argument, tuple(other.constant or other.number for other in others)))


def _alone(atom: Atom) -> Sum:
    return Sum((Product(((atom, 1.0),)),))


def _plus(a: Sum, b: Sum) -> Sum:
    assert not (a.constant and b.constant)
    return Sum(a.terms + b.terms, a.number + b.number, a.constant or b.constant)


def _times(a: Sum, b: Sum) -> Sum:
    for number, other in ((a, b), (b, a)):
        if not number.terms and not number.constant and not other.constant:
            terms = (replace(term, number=term.number * number.number) for term in other.terms)
            return Sum(tuple(terms), other.number * number.number)
    p, q = _product(a), _product(b)
    exponents: dict[Atom, float] = dict(p.factors)
    for atom, exponent in q.factors:
        exponents[atom] = exponents.get(atom, 0.0) + exponent
    assert not (p.constant and q.constant)
    return Sum((Product(tuple(exponents.items()), p.number * q.number, p.constant or q.constant),))


def _power(a: Sum, exponent: float) -> Sum:
    p = _product(a)
    assert not p.constant
    powers = tuple((atom, power * exponent) for atom, power in p.factors)
    number = p.number**exponent
    return Sum((Product(powers, number),)) if powers else Sum(number=number)


def _product(a: Sum) -> Product:
    if len(a.terms) == 1 and not a.number and not a.constant:
        return a.terms[0]
    if not a.terms:
        return Product(constant=a.constant) if a.constant else Product(number=a.number)
    return Product(((a, 1.0),))
