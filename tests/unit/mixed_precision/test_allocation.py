"""Paths of allocations, against all that there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx import Int4Spec, Int8Spec, Int16Spec
from quark.onnx.mixed_precision.allocation import Choice, Option, Path

SPECS = (Int4Spec(), Int8Spec(), Int16Spec(), None)


def choices(errors: list[list[float]], sizes: list[int]) -> list[Choice]:
    """Each with bits that grow with the size, and errors that need not shrink."""
    return [
        Choice((f"w{at}",), True, size, tuple(Option(spec, bits * size, error) for spec, bits, error in
               zip(SPECS, (4, 8, 16, 32), row, strict=True)))
        for at, (row, size) in enumerate(zip(errors, sizes, strict=True))
    ]  # fmt: skip


@given(
    st.lists(st.tuples(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 1000)), min_size=1, max_size=4)
)
def test_no_other_allocation_has_less_error_with_as_few_bits(rows: list[tuple[list[float], int]]) -> None:
    given_choices = choices([errors for errors, _ in rows], [size for _, size in rows])
    path = Path(given_choices)
    every = list(product(*(choice.options for choice in given_choices)))
    for count in range(len(path) + 1):
        bits, error = path.bits(count), path.error(count)
        least = min(sum(o.error for o in one) for one in every if sum(o.bits for o in one) <= bits)
        assert error == pytest.approx(least, abs=1e-9)


def test_the_way_ends_with_the_least_error_and_never_takes_bits_for_nothing() -> None:
    path = Path(choices([[1.0, 0.5, 0.5, 0.4], [0.1, 0.2, 0.05, 0.05]], [10, 1000]))
    assert path.error(len(path)) == pytest.approx(0.45)
    errors = [path.error(count) for count in range(len(path) + 1)]
    bits = [path.bits(count) for count in range(len(path) + 1)]
    assert errors == sorted(errors, reverse=True)
    assert bits == sorted(bits)
    assert all(option.bits != 16 * 10 for option in path.at(len(path))), "as good as 8"


@given(st.lists(st.lists(st.floats(0, 1), min_size=4, max_size=4), min_size=1, max_size=4), st.floats(0, 4))
def test_the_first_within_an_error(errors: list[list[float]], limit: float) -> None:
    path = Path(choices(errors, list(range(1, len(errors) + 1))))
    within = [count for count in range(len(path) + 1) if path.error(count) <= limit]
    assert path.first_within(limit) == (within[0] if within else len(path))
    assert np.isfinite(path.bits(0))
