"""Selective update's norm and rule against NumPy, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx import _core


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 40)), min_size=1, max_size=4))
def test_the_norms_of_all_samples_are_added(shapes: list[tuple[int, int]]) -> None:
    found, norms = 0.0, list[float]()
    for seed, shape in enumerate(shapes):
        have, want = floats(*shape, seed=seed), floats(*shape, seed=seed + 99)
        found = _core.add_distances(found, have, want, shape[0])
        norms.extend(np.linalg.norm(have.astype(np.float64) - want, axis=1))
    assert found == pytest.approx(np.sum(norms), rel=1e-13)


def test_axes_behind_the_first_count_together() -> None:
    have, want = floats(4, 3, 2, 5), floats(4, 3, 2, 5, seed=1)
    by_sample, at_once = (_core.add_distances(0.0, have, want, samples) for samples in (4, 1))
    assert by_sample == pytest.approx(np.linalg.norm((have - want).reshape(4, -1), axis=1).sum(), rel=1e-6)
    assert at_once == pytest.approx(np.linalg.norm(have - want), rel=1e-6)


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True))
def test_what_is_strictly_lower_is_better(score: float, kept: float) -> None:
    assert _core.is_better(score, kept) == (score < kept)
    assert not _core.is_better(kept, kept)
    assert _core.is_better(score, math.inf) == (score < math.inf)


def add(have: object, want: object, samples: int) -> Callable[[], object]:
    return lambda: _core.add_distances(0.0, have, want, samples)  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "lists": (add([1.0], floats(1), 1), TypeError, "have: a NumPy array"),
    "doubles": (add(floats(2), np.ones(2), 1), TypeError, "want: dtype float32"),
    "sizes": (add(floats(2, 3), floats(2, 4), 2), ValueError, "have: 8 elements are needed, not 6"),
    "order": (add(floats(2, 3).T, floats(3, 2), 1), ValueError, "have: a C-contiguous"),
    "no sample": (add(floats(2), floats(2), 0), ValueError, "samples: a divisor of 2 is needed, not 0"),
    "part of one": (add(floats(5), floats(5), 2), ValueError, "samples: a divisor of 5 is needed, not 2"),
    "no number": (lambda: _core.is_better("0", 1.0), TypeError, "must be real number"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()
