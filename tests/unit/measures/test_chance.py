"""How far apart two models are in standard errors, by hand and against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quark.onnx.measures.chance import standard_errors


def test_it_is_the_statistic_of_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    better, more = random.random(9), random.standard_normal(9)
    expected = more.mean() / math.sqrt(more.var(ddof=1) / 9)
    assert standard_errors(better + more, better) == pytest.approx(expected)
    assert standard_errors(better, better + more) == pytest.approx(-expected)


@pytest.mark.parametrize(
    ("worse", "better", "expected"),
    [
        ([], [], 0.0),
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.5, 2.5], [1.0, 2.0], math.inf),  # every sample says the same
        ([0.5, 1.5], [1.0, 2.0], -math.inf),
        ([math.inf, 1.0], [0.0, 1.0], math.inf),
        ([math.inf, 1.0], [math.inf, 1.0], 0.0),
        ([0.0, 1.0], [math.inf, 1.0], -math.inf),
        ([3.0], [2.0], 0.5),  # one sample: by how much
        ([1.0], [0.0], math.inf),
    ],
)
def test_by_hand(worse: list[float], better: list[float], expected: float) -> None:
    assert standard_errors(np.array(worse), np.array(better)) == expected


def test_one_sample_among_equal_ones_is_one_standard_error() -> None:
    """What a single sample does is never more than chance at one standard error, however large it is."""
    for more in (1e-3, 1.0, 1e6):
        assert standard_errors(np.array([more, 0, 0, 0]), np.zeros(4)) == pytest.approx(1)
