"""How far a model is from another: numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_models import build

from quark.onnx.inference import Engine
from quark.onnx.report.end_to_end import Deviation, compare, outputs_of

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
    assert compare([[WANT]], [[WANT]]) == Deviation(l2=0.0, sqnr_db=math.inf, agreement=1.0)


def test_noise_without_signal():
    assert compare([[np.zeros_like(WANT)]], [[WANT]]).sqnr_db == -math.inf


def test_all_float_outputs_of_a_sample_count_together():
    other = np.float32([[[1, 1]], [[2, 2]]])
    found = compare([[WANT, other]], [[WANT + np.float32([3, 0, 0]), other + np.float32([0, 4])]])
    assert found.l2 == pytest.approx(5)


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


def test_outputs_come_from_the_model_batch_by_batch():
    model = build("(float[N] x) => (float[N] y, float[N] z) { y = Neg(x) z = Add(x, x) }")
    found = outputs_of(model, [{"x": np.float32([1])}, {"x": np.float32([2, 3])}], Engine(1), fuse_qdq=True)
    assert [[a.tolist() for a in batch] for batch in found] == [[[-1], [2]], [[-2, -3], [4, 6]]]
