"""How far a model is from another: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quark.onnx.measures.deviation import Comparison, compare

WANT = np.float32([[1, 2, 2], [0, 3, 4]])


def test_by_hand():
    have = WANT + np.float32([[3, 0, -4], [0, 2, 0]])  # norms 5 and 2; both largest entries move
    found = compare([[WANT]], [[have]])
    assert found.l2 == pytest.approx(3.5)
    assert found.sqnr_db == pytest.approx(10 * math.log10((9 + 25) / (25 + 4)))
    assert found.agreement == 0


def test_the_cut_into_batches_does_not_matter():
    rng = np.random.default_rng(0)
    want = rng.standard_normal((7, 5)).astype(np.float32)
    have = want + rng.standard_normal((7, 5)).astype(np.float32) / 2
    whole = compare([[want]], [[have]])
    parts = compare([[want[:3]], [want[3:]]], [[have[:3]], [have[3:]]])
    assert parts.l2 == pytest.approx(whole.l2)
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.agreement == whole.agreement == pytest.approx((want.argmax(axis=1) == have.argmax(axis=1)).mean())


def test_no_difference():
    found = compare([[WANT]], [[WANT]])
    assert (found.l2, found.sqnr_db, found.agreement, found.error) == (0.0, math.inf, 1.0, 0.0)


def test_noise_without_signal():
    assert compare([[np.zeros_like(WANT)]], [[WANT]]).sqnr_db == -math.inf


def test_all_float_outputs_of_a_sample_count_together():
    other = np.float32([[[1, 1]], [[2, 2]]])
    found = compare([[WANT, other]], [[WANT + np.float32([3, 0, 0]), other + np.float32([0, 4])]])
    assert found.l2 == pytest.approx(5)


def test_a_large_output_does_not_hide_a_small_one():
    boxes, scores = 640 * WANT, np.float32([[0.1, 0.9], [0.8, 0.3]])
    found = compare([[boxes, scores]], [[boxes, 0 * scores]])
    whole, of_scores = found.outputs
    assert (whole.error, whole.lost) == (0, ())
    assert of_scores.error == pytest.approx((scores**2).sum() / (4 * scores.astype(np.float64).var()))
    assert of_scores.lost == (of_scores,)
    assert found.error == pytest.approx(of_scores.error / 2)
    assert found.sqnr_db == pytest.approx(10 * math.log10(2))  # no noise in the one, all noise in the other
    assert of_scores.sqnr_db == pytest.approx(0)


def test_parts_of_an_output_count_each_for_itself():
    want = np.float32([[100, 300, 0.1], [200, 400, 0.9]])
    have = want * np.float32([1, 1, 0])
    parts = {"boxes": np.array([[True, True, False]] * 2), "scores": np.array([[False, False, True]] * 2)}
    comparison = Comparison(["y"])
    comparison.add([want], [have], {0: parts})
    (output,) = comparison.deviation().outputs
    assert [part.name for part in output.parts] == ["boxes", "scores"]
    assert [part.name for part in output.lost] == ["scores"]
    scores = np.array([0.1, 0.9])
    assert output.error == pytest.approx((scores**2).sum() / (2 * scores.var()) / 2, rel=1e-5)


def test_outputs_without_signal_say_nothing_of_the_whole():
    nothing = np.zeros((2, 3), np.float32)
    found = compare([[WANT, nothing]], [[WANT + 1, nothing + 1]])
    alone = compare([[WANT]], [[WANT + 1]])
    assert (found.error, found.sqnr_db) == pytest.approx((alone.error, alone.sqnr_db))
    assert math.isnan(found.outputs[1].error)


def test_values_that_are_not_finite():
    """What the float model gives as NaN or Inf does not count; where only the other one does, nothing is right."""
    want = np.float32([[1, np.nan, 2], [3, np.inf, 5]])
    assert compare([[want]], [[want]]).error == 0
    assert compare([[want]], [[np.float32([[1, 7, 2], [3, 7, 5]])]]).error == 0
    found = compare([[want]], [[np.float32([[np.nan, 7, 2], [3, 7, 5]])]])
    assert (found.error, found.sqnr_db) == (math.inf, -math.inf)


def gathered(want: np.ndarray, have: np.ndarray) -> Comparison:
    comparison = Comparison(["y"])
    comparison.add([want], [have])
    return comparison


@pytest.mark.parametrize(
    ("count", "factor", "expected"), [(20, 2.0, ("y",)), (20, 1.05, ()), (3, 1.5, ()), (3, 9.0, ("y",))]
)
def test_what_is_worse_by_much_is_beyond_chance(count: int, factor: float, expected: tuple[str, ...]):
    rng = np.random.default_rng(0)
    want, noise = rng.standard_normal((count, 50)), 0.01 * rng.standard_normal((count, 50))
    plain, other = gathered(want, want + noise), gathered(want, want + factor * noise)
    assert other.beyond_chance(plain) == expected
    assert plain.beyond_chance(other) == ()


def test_one_odd_sample_is_chance():
    """Twice the error in all, from one sample of twenty."""
    rng = np.random.default_rng(0)
    want, noise = rng.standard_normal((20, 50)), 0.01 * rng.standard_normal((20, 50))
    odd = noise * np.where(np.arange(20) == 7, 5.0, 1.0)[:, None]
    assert gathered(want, want + odd).beyond_chance(gathered(want, want + noise)) == ()


def test_integer_outputs_are_left_out():
    labels = np.array([1, 2])
    found = compare([[WANT, labels]], [[WANT, labels + 1]])
    assert (found.l2, found.sqnr_db) == (0, math.inf)
    only_labels = compare([[labels]], [[labels + 1]])
    assert (only_labels.l2, only_labels.agreement) == (0, None)


def test_outputs_that_do_not_count_samples():
    boxes = np.float32([[3, 4], [0, 0], [0, 0]])  # three for two samples
    found = compare([[WANT, boxes]], [[WANT, 0 * boxes]])
    assert found.l2 == pytest.approx(5)


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 1), (2,), ()])
def test_agreement_is_for_class_scores_only(shape: tuple[int, ...]):
    output = np.ones(shape, np.float32)
    found = compare([[output]], [[output + 1]])
    assert found.agreement is None
    assert found.l2 == pytest.approx(math.sqrt(math.prod(shape[1:])))


def test_noise_of_an_output_that_is_zero_counts_where_nothing_else_does():
    silent, noisy = np.zeros((3, 2), np.float32), np.full((3, 2), 0.1, np.float32)
    assert compare([[silent]], [[silent]]).error == 0
    assert compare([[silent]], [[noisy]]).error == math.inf


def test_errors_of_samples_are_those_of_the_whole():
    """Their mean is the error, whatever counts: parts, outputs, batches that differ."""
    rng = np.random.default_rng(1)
    comparison, wants, haves = Comparison(["y", "z", "zero"]), [], []
    for count in (3, 1, 4):
        want = [rng.standard_normal((count, 6)), 7 * rng.standard_normal((count, 2)), np.zeros((count, 1))]
        have = [value + 0.1 * rng.standard_normal(value.shape) for value in want]
        mask = np.tile(np.arange(6) < 2, (count, 1))
        comparison.add(want, have, {0: {"a": mask, "b": ~mask}})
        wants.append(want)
        haves.append(have)
    found = comparison.sample_errors()
    a, b, z = (
        np.concatenate([((h[i] - w[i]) ** 2)[:, own].sum(axis=1) for w, h in zip(wants, haves, strict=True)])
        / np.concatenate([w[i][:, own] for w in wants]).var()
        / np.arange(len(wants[0][i][0]))[own].size
        for i, own in ((0, slice(0, 2)), (0, slice(2, 6)), (1, slice(0, 2)))
    )
    np.testing.assert_allclose(found, ((a + b) / 2 + z) / 2)
    assert found.mean() == pytest.approx(comparison.deviation().error)
    np.testing.assert_allclose(comparison.sample_errors("z"), z)


def test_errors_of_outputs_that_do_not_count_samples_are_of_batches():
    comparison = Comparison(["y", "boxes"])
    for boxes in (1, 3):
        comparison.add([np.float32([[1], [3]]), np.ones((boxes, 2))], [np.float32([[1], [4]]), np.zeros((boxes, 2))])
    assert comparison.sample_errors().shape == (2,)
    assert comparison.sample_errors().mean() == pytest.approx(comparison.deviation().error)


def test_errors_of_what_is_constant():
    comparison = Comparison(["y"])
    comparison.add([np.zeros((2, 1))], [np.float64([[0], [1e-9]])])
    np.testing.assert_array_equal(comparison.sample_errors(), [0, math.inf])
