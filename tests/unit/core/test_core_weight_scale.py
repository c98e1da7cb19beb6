"""The weight scale with the least output error, against a search that tries every factor in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.fake_quant import affine_from_range, fake_quant
from reference.weight_scale import ScaleProblem

from quark.onnx import _core

ONE = _core.ThreadPool(1)


@dataclass(frozen=True)
class Options:
    """symmetric signed or asymmetric unsigned integers, and the two switches."""

    symmetric: bool
    per_channel: bool
    bias_free: bool
    bits: int = 8

    @property
    def grid(self) -> tuple[int, int]:
        if not self.symmetric:
            return 0, 2**self.bits - 1
        highest = 2 ** (self.bits - 1) - 1
        return (-highest if self.bits >= 8 else -highest - 1), highest


OPTIONS = st.builds(Options, st.booleans(), st.booleans(), st.booleans(), st.sampled_from([2, 4, 8]))


def data(seed: int, *, outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight, x): integers in x, so that moments are exact; columns of very different size, some dead."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-8, 9, (60, inputs)) * rng.integers(0, 4, inputs) + rng.integers(-3, 4, inputs)
    weight = rng.standard_normal((outputs, inputs)) * np.exp(rng.normal(0, 1.5, inputs))
    return weight.astype(np.float32), x.astype(np.float32)


def chosen(
    layer: _core.Layer, weight: np.ndarray, options: Options, pool: _core.ThreadPool = ONE
) -> tuple[np.ndarray, np.ndarray]:
    qmin, qmax = options.grid
    return layer.weight_scale(
        weight,
        qmin=qmin,
        qmax=qmax,
        symmetric=options.symmetric,
        per_channel=options.per_channel,
        bias_free=options.bias_free,
        scale_type="Float32",
        pool=pool,
    )


def layer_of(x: np.ndarray, outputs: int) -> _core.Layer:
    layer = _core.Layer(x.shape[1], outputs, len(x), 1 << 20, target=False)
    layer.feed(x, None, ONE)
    return layer


def problem_of(weight: np.ndarray, x: np.ndarray, options: Options) -> ScaleProblem:
    qmin, qmax = options.grid
    return ScaleProblem(weight, x, qmin=qmin, qmax=qmax, symmetric=options.symmetric, bias_free=options.bias_free)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 9), OPTIONS)
def test_is_the_best_of_the_grid(seed: int, outputs: int, inputs: int, options: Options):
    weight, x = data(seed, outputs=outputs, inputs=inputs)
    scale, zero_point = chosen(layer_of(x, outputs), weight, options)
    problem = problem_of(weight, x, options)
    row_sets = [slice(o, o + 1) for o in range(outputs)] if options.per_channel else [slice(None)]
    assert scale.shape == zero_point.shape == (len(row_sets),)
    assert scale.dtype == np.float32
    assert zero_point.dtype == np.int32
    for rows, s, z in zip(row_sets, scale, zero_point, strict=True):
        assert (s, z) == problem.affine(rows, problem.best_factor(rows))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), OPTIONS)
def test_is_no_worse_than_minimum_and_maximum(seed: int, options: Options):
    """Measured on the rows themselves: the mean squared error of outputs relative to their power and its mean."""
    rng = np.random.default_rng(seed)
    x = (rng.integers(-8, 9, (200, 12)) * rng.integers(1, 4, 12) + 1).astype(np.float32)
    weight = (rng.standard_normal((4, 12)) * np.exp(rng.normal(0, 1.5, 12))).astype(np.float32)
    scale, zero_point = chosen(layer_of(x, 4), weight, options)
    rows = x.astype(np.float64)
    if options.bias_free:  # the bias takes up the mean
        rows = rows - rows.mean(axis=0)

    def loss(parameters: list[tuple[float, int]]) -> float:
        power, total = ((rows @ weight.T.astype(np.float64)) ** 2).mean(axis=0), 0.0
        for w, p, (s, z) in zip(weight, power, parameters, strict=True):
            error = rows @ (fake_quant(w, s, z, *options.grid).astype(np.float64) - w)
            total += (error**2).mean() / (p + power.mean())
        return total

    parts = list(weight) if options.per_channel else [weight] * 4
    widest = [affine_from_range(w.min(), w.max(), *options.grid, symmetric=options.symmetric) for w in parts]
    found = np.broadcast_to(scale, 4), np.broadcast_to(zero_point, 4)
    # The core adds a little of the weight's own error, which rows do not show.
    assert loss(list(zip(*found, strict=True))) <= loss(widest) * 1.01


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("kept", [0, 300, 150])
def test_few_factors_find_the_scale_of_a_large_weight(bits: int, per_channel: bool, kept: int):
    """As good as the best of many factors, from moments or from all rows, and nearly so from some of the rows; one
    scale for all outputs is chosen by a part of them.
    """
    rng = np.random.default_rng(bits)
    mixing = rng.standard_normal((40, 400)) * np.exp(rng.normal(0, 1, 400))
    x = np.maximum(rng.standard_normal((300, 40)) @ mixing + rng.standard_normal((300, 400)), 0).astype(np.float32)
    outputs = 28 if per_channel else 160
    weight = (rng.standard_t(4, (outputs, 400)) * np.exp(rng.normal(0, 0.5, (outputs, 1)))).astype(np.float32)
    options = Options(symmetric=True, per_channel=per_channel, bias_free=True, bits=bits)
    layer = _core.Layer(400, outputs, len(x), 1 << 20, target=False, kept=kept, thinned=True)
    layer.feed(x, None, ONE)
    scale, _ = chosen(layer, weight, options)
    problem = problem_of(weight, x, options)
    total, best = 0.0, 0.0
    for rows, s in zip([slice(o, o + 1) for o in range(outputs)] if per_channel else [slice(None)], scale, strict=True):
        widest, _ = problem.affine(rows, 1.0)
        total += problem.relative_error(rows, float(s) / widest)
        best += problem.relative_error(rows, problem.best_factor(rows))
    assert total <= best * (1.02 if kept != 150 else 1.1)


def test_the_loudest_outputs_have_their_say_where_a_part_is_tried():
    """One output has large weights on large inputs: cutting them would cost more than all others gain."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((512, 300)).astype(np.float32)
    weight[301] *= 60
    x = rng.standard_normal((400, 300)).astype(np.float32)
    options = Options(symmetric=True, per_channel=False, bias_free=True)
    scale, _ = chosen(layer_of(x, 512), weight, options)
    problem = problem_of(weight, x, options)
    widest, _ = problem.affine(slice(None), 1.0)
    found = problem.relative_error(slice(None), float(scale[0]) / widest)
    assert found <= 1.02 * problem.relative_error(slice(None), problem.best_factor(slice(None)))


@pytest.mark.parametrize("kept", [0, 60])
def test_the_mean_input(kept: int):
    _, x = data(8, outputs=3, inputs=70)
    layer = _core.Layer(70, 3, len(x), 1 << 20, target=False, kept=kept)
    layer.feed(x, None, ONE)
    np.testing.assert_allclose(layer.mean_input(ONE), x.mean(axis=0, dtype=np.float64)[None], rtol=1e-6, atol=1e-6)


def test_an_outlier_on_a_dead_input_does_not_set_the_scale():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((16, 40)).astype(np.float32)
    x = rng.integers(-8, 9, (60, 40)).astype(np.float32)
    x[:, 5] = 0
    weight[2, 5] = 40
    scale, _ = chosen(layer_of(x, 16), weight, Options(symmetric=True, per_channel=False, bias_free=False))
    assert scale[0] < 40 / 4 / 127


def test_the_largest_weight_fits_above_zero_where_a_symmetric_grid_has_one_integer_less():
    """At the range of minimum and maximum int4's 7 is half a step too small; all weights are equally large here."""
    weight = np.ones((4, 8), np.float32)
    x = np.random.default_rng(0).integers(-8, 9, (60, 8)).astype(np.float32)
    options = Options(symmetric=True, per_channel=False, bias_free=False, bits=4)
    scale, _ = chosen(layer_of(x, 4), weight, options)
    np.testing.assert_allclose(scale, 1 / 7, rtol=1e-6)


def test_an_input_that_never_changes_costs_nothing_where_a_bias_takes_up_the_mean():
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((16, 40)).astype(np.float32)
    x = rng.integers(-8, 9, (60, 40)).astype(np.float32)
    x[:, 5] = 7
    weight[2, 5] = 40
    with_bias, without = (
        chosen(layer_of(x, 16), weight, Options(symmetric=True, per_channel=False, bias_free=free))[0][0]
        for free in (True, False)
    )
    assert with_bias < without / 4


def test_groups_are_layers_of_their_own_per_channel():
    rng = np.random.default_rng(5)
    x = rng.integers(-8, 9, (10, 6, 9)).astype(np.float32)
    weight = rng.standard_normal((8, 3, 3)).astype(np.float32)
    conv = ((3,), (1,), (1,), (1, 1), 0)
    options = Options(symmetric=True, per_channel=True, bias_free=True)
    whole = _core.Layer(9, 4, 10, 1 << 20, groups=2, conv=conv, target=False)
    whole.feed(x, None, ONE)
    together = chosen(whole, weight, options)
    for group in range(2):
        alone = _core.Layer(9, 4, 10, 1 << 20, conv=conv, target=False)
        alone.feed(np.ascontiguousarray(x[:, 3 * group : 3 * group + 3]), None, ONE)
        for a, b in zip(together, chosen(alone, weight[4 * group : 4 * group + 4], options), strict=True):
            np.testing.assert_array_equal(a[4 * group : 4 * group + 4], b)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_weight_of_zeros_gets_a_usable_scale(per_channel: bool):
    _, x = data(6, outputs=3, inputs=4)
    options = Options(symmetric=True, per_channel=per_channel, bias_free=True)
    scale, zero_point = chosen(layer_of(x, 3), np.zeros((3, 4), np.float32), options)
    assert (scale > 0).all()
    assert not zero_point.any()


@pytest.mark.parametrize("per_channel", [False, True])
def test_threads_do_not_matter(per_channel: bool):
    weight, x = data(7, outputs=70, inputs=40)
    options = Options(symmetric=False, per_channel=per_channel, bias_free=True)
    one, three = (chosen(layer_of(x, 70), weight, options, _core.ThreadPool(n)) for n in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
