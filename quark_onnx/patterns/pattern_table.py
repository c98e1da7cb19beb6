"""The small graphs that stand for one operator, as formulas: what exporters write, in place of what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from quark.onnx.patterns.formula import Sum, parse

__all__ = ["PATTERNS", "Pattern"]


@dataclass(frozen=True)
class Pattern:
    """One graph, and what it computes.

    To add one: a line below, one in docs/patterns.md, a case in tests/reference/pattern_cases.py.

    Attributes:
        stands_for: an ONNX operator on x, or "SiLU". preparation/fuse.py says what becomes of each,
            core_view/output_stage.py which of them the loss looks through.
        formula: of x and of constants (any other name; the graph gives their values), in Python's notation. Calls are
            ONNX operators, with Clip(x, min, max), HardSigmoid(x, alpha, beta), ReduceMean(x, axes). One formula is
            every order of sums and products and every place of a number in them, with Sub, Neg, Div, Reciprocal, Sqrt
            and Pow in place of Add and Mul.
        defaults: the values of constants that the formula does not name or the graph need not have, and attributes.
    """

    stands_for: str
    formula: str
    defaults: Mapping[str, float | str] = field(default_factory=dict)

    @cached_property
    def form(self) -> Sum:
        return parse(self.formula)


_SIXTH = {"alpha": 1 / 6, "beta": 1 / 2}
_TANH = {"approximate": "tanh"}
_PLAIN = {"scale": 1.0, "bias": 0.0}

# Where two of them end at one node, the first counts.
PATTERNS = (
    Pattern("SiLU", "x * Sigmoid(x)"),
    Pattern("HardSwish", "x * Clip(x + 3, 0, 6) / 6"),
    Pattern("HardSwish", "x * Clip(x / 6 + 1/2, 0, 1)"),
    Pattern("HardSwish", "x * HardSigmoid(x, 1/6, 1/2)"),
    Pattern("HardSigmoid", "Clip(x + 3, 0, 6) / 6", _SIXTH),
    Pattern("HardSigmoid", "Clip(alpha * x + beta, 0, 1)"),
    Pattern("PRelu", "Relu(x) - slope * Relu(-x)"),
    Pattern("Gelu", "x * (1 + Erf(x / sqrt(2))) / 2"),
    Pattern("Gelu", "x * (1 + Tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2", _TANH),
    Pattern("Gelu", "x * (1 + Tanh(sqrt(2 / pi) * x * (1 + 0.044715 * x**2))) / 2", _TANH),
    Pattern(
        "LayerNormalization",
        """
        d = x - ReduceMean(x, axes)
        d / Sqrt(ReduceMean(d**2, axes) + epsilon) * scale + bias
        """,
        _PLAIN,
    ),
    Pattern(
        "LayerNormalization",
        """
        m = ReduceMean(x, axes)
        g = scale / Sqrt(ReduceMean((x - m) ** 2, axes) + epsilon)
        x * g + (bias - m * g)
        """,
        _PLAIN,
    ),
    Pattern(
        "LayerNormalization",
        """
        m = ReduceMean(x, axes)
        (x - m) / Sqrt(ReduceMean(x**2, axes) - m**2 + epsilon) * scale + bias
        """,
        _PLAIN,
    ),
    Pattern(
        "LayerNormalization",
        """
        m = ReduceMean(x, axes)
        (x - m) / Sqrt(Relu(ReduceMean(x**2, axes) - m**2) + epsilon) * scale + bias
        """,
        _PLAIN,
    ),
    Pattern(
        "LayerNormalization",
        """
        m = ReduceMean(x, axes)
        g = scale / Sqrt(ReduceMean(x**2, axes) - m**2 + epsilon)
        x * g + (bias - m * g)
        """,
        _PLAIN,
    ),
    Pattern(
        "LayerNormalization",
        """
        m = ReduceMean(x, axes)
        g = scale / Sqrt(Relu(ReduceMean(x**2, axes) - m**2) + epsilon)
        x * g + (bias - m * g)
        """,
        _PLAIN,
    ),
)
