"""SelectiveUpdate against NumPy, and what it refuses."""

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
def test_the_score_is_the_mean_norm(shapes: list[tuple[int, int]]) -> None:
    selective, norms = _core.SelectiveUpdate(), list[float]()
    for seed, shape in enumerate(shapes):
        have, want = floats(*shape, seed=seed), floats(*shape, seed=seed + 99)
        selective.add(have, want, shape[0])
        norms.extend(np.linalg.norm(have.astype(np.float64) - want, axis=1))
    assert selective.score() == pytest.approx(np.mean(norms), rel=1e-13)
    assert math.isnan(selective.score()), "a score forgets what it was made of"


def test_axes_behind_the_first_count_together() -> None:
    selective, have, want = _core.SelectiveUpdate(), floats(4, 3, 2, 5), floats(4, 3, 2, 5, seed=1)
    selective.add(have, want, 4)
    by_sample = selective.score()
    assert by_sample == pytest.approx(np.linalg.norm((have - want).reshape(4, -1), axis=1).mean(), rel=1e-6)
    selective.add(have, want, 1)
    assert selective.score() == pytest.approx(np.linalg.norm(have - want), rel=1e-6)
    assert by_sample != selective.score()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_what_is_strictly_better_than_all_before_is_kept(scores: list[float]) -> None:
    selective, best = _core.SelectiveUpdate(), math.inf
    for score in scores:
        assert selective.keep(score) == (score < best)
        best = min(best, score) if score == score else best


BAD: dict[str, tuple[Callable[[_core.SelectiveUpdate], object], type[Exception], str]] = {
    "lists": (lambda s: s.add([1.0], floats(1), 1), TypeError, "have: a NumPy array"),  # type: ignore[arg-type]
    "doubles": (lambda s: s.add(floats(2), np.ones(2), 1), TypeError, "want: dtype float32"),  # type: ignore[arg-type]
    "sizes": (lambda s: s.add(floats(2, 3), floats(2, 4), 2), ValueError, "have: 8 elements are needed, not 6"),
    "order": (lambda s: s.add(floats(2, 3).T, floats(3, 2), 1), ValueError, "have: a C-contiguous"),
    "no sample": (lambda s: s.add(floats(2), floats(2), 0), ValueError, "samples: a divisor of 2 is needed, not 0"),
    "part of one": (lambda s: s.add(floats(5), floats(5), 2), ValueError, "samples: a divisor of 5 is needed, not 2"),
    "no number": (lambda s: s.keep("0"), TypeError, "must be real number"),  # type: ignore[arg-type]
    "arguments": (lambda _: _core.SelectiveUpdate(1), TypeError, "SelectiveUpdate"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    call, error, message = BAD[name]
    selective = _core.SelectiveUpdate()
    with pytest.raises(error, match=message):
        call(selective)
    selective.add(floats(1), floats(1), 1)
    assert selective.score() == 0, "and nothing was added"
