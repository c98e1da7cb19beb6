"""A formula's form computes what Python computes, and is the same for other writings."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx.patterns.formula import Atom, Call, Product, Sum, parse
from quark.onnx.patterns.pattern_table import PATTERNS

CONSTANTS = {
    "alpha": 0.3, "beta": 0.4, "slope": 0.7, "scale": 1.3, "bias": -0.2, "epsilon": 1e-3, "axes": -1, "c": 2.5
}  # fmt: skip
OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Tanh": np.tanh,
    "Erf": np.vectorize(math.erf),
    "Clip": np.clip,
    "Relu": lambda x: np.maximum(x, 0),
    "Sqrt": np.sqrt,
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "ReduceMean": lambda x, axis: x.mean(axis=axis, keepdims=True),
}
X = np.random.default_rng(0).normal(0, 2, (5, 6))


def computed(part: Sum | Product | Atom, x: np.ndarray) -> np.ndarray:
    """The value by the definition of the form."""

    def value(name: str, default: float) -> float:
        return CONSTANTS[name] if name else default

    match part:
        case str():
            return x
        case Sum():
            return sum((computed(term, x) for term in part.terms), part.number + value(part.constant, 0.0))
        case Product():
            number = part.number * value(part.constant, 1.0)
            return math.prod((computed(atom, x) ** power for atom, power in part.factors), start=number)
        case Call():
            parameters = [CONSTANTS[p] if isinstance(p, str) else p for p in part.parameters]
            return OPERATORS[part.op](computed(part.argument, x), *parameters)


def evaluated(text: str, x: np.ndarray) -> np.ndarray:
    """The value that Python computes."""
    *named, last = textwrap.dedent(text).strip().splitlines()
    names: Mapping[str, object] = {"x": x, "sqrt": math.sqrt, "pi": math.pi, **OPERATORS, **CONSTANTS}
    known = dict(names)
    exec("\n".join(named), known)
    return eval(last, known)


@pytest.mark.parametrize("pattern", PATTERNS, ids=[pattern.formula.strip() for pattern in PATTERNS])
def test_a_pattern_computes_its_formula(pattern) -> None:
    np.testing.assert_allclose(computed(pattern.form, X), evaluated(pattern.formula, X), rtol=1e-12)


NUMBERS = st.sampled_from(["2", "0.5", "3", "1/6", "sqrt(2)"])
LEAVES = st.sampled_from(["x", "x", "Sigmoid(x)", "Relu(x)"]) | NUMBERS


def _larger(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return (
        st.builds("({} {} {})".format, parts, st.sampled_from("+-*"), parts)
        | st.builds("({} / {})".format, parts, NUMBERS)
        | st.builds("(-{})".format, parts)
        | st.builds("({} ** {})".format, parts, st.sampled_from("23"))
        | st.builds("{}({})".format, st.sampled_from(["Tanh", "Relu"]), parts)
        | st.builds("Clip({}, -1, 2)".format, parts)
    )


@given(st.recursive(LEAVES, _larger, max_leaves=8))
def test_a_form_computes_its_formula(text: str) -> None:
    x = X / 4
    expected = evaluated(text, x) + np.zeros_like(x)
    np.testing.assert_allclose(computed(parse(text), x) + np.zeros_like(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("x * Sigmoid(x) / 2", "0.5 * (x * Sigmoid(x))"),
        ("x + 3 - 5", "x - 2"),
        ("x * x * x", "x ** 3"),
        ("(x + 3) / 6", "x / 6 + 1/2"),
        ("x / Sqrt(x + c)", "x * (x + c) ** -0.5"),
        ("1 / (1 / x)", "x"),
        ("Relu(x)", "Clip(x, 0, 1e999)"),
        ("-(x - 1)", "-x + 1"),
        ("a = x + 1\na * Tanh(a)", "(x + 1) * Tanh(x + 1)"),
    ],
)
def test_two_writings_have_one_form(text: str, other: str) -> None:
    assert parse(text) == parse(other)


@pytest.mark.parametrize("text", ["x if x else 1", "x @ x", "x[0]"])
def test_what_is_no_formula_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="no formula"):
        parse(text)


def test_the_operators_of_a_formula() -> None:
    assert parse("x * Tanh(1 + Erf(x / Sqrt(ReduceMean(x, axes) + c)))").operators == {"Tanh", "Erf", "ReduceMean"}
