"""AdaRound and AdaQuant by gradient: every step against NumPy, the report, and what must not change the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import adaquant, adaround
from reference.conv_cases import ConvCase, conv_cases, conv_transpose_cases
from reference.descent import finished
from reference.least_squares import start
from reference.training import Options, SplitMix64, Turns, early_stop, per_unit, real_bias
from reference.training_cases import CASES, TrainingCase, case_of, in_8_bits, matrix_case, train

from quark.onnx import _core

ADAROUND = Options(batch_size=4, iterations=80, learning_rate=0.05)
ADAQUANT = Options(batch_size=4, iterations=40, learning_rate=0.004)
METHODS = pytest.mark.parametrize(
    ("is_adaround", "options"), [(True, ADAROUND), (False, ADAQUANT)], ids=["adaround", "adaquant"]
)
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def run(case: TrainingCase, options: Options, *, adaround: bool, **changed: Any) -> dict[str, Any]:
    return train(case.core(), case.layer, options, adaround=adaround, **changed)


def final_bias(case: TrainingCase, found: dict[str, Any]) -> np.ndarray:
    return real_bias(case.layer, found["bias"])


def changed_rows(case: TrainingCase, found: dict[str, Any]) -> np.ndarray:
    changed = (found["weight"] != case.layer.weight_q).any(axis=1)
    if found["bias"] is not None:
        changed |= found["bias"] != np.rint(case.layer.bias / case.layer.bias_scale)
    return changed


def assert_same_bits(a: dict[str, Any], b: dict[str, Any]) -> None:
    steps = a["iterations"]
    np.testing.assert_array_equal(a["losses"][:steps], b["losses"][:steps])
    for name in a.keys() - {"losses"}:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# ---- against the reference ---------------------------------------------------------------------


def test_every_sample_has_its_turn_before_any_has_another():
    random = SplitMix64(1234567)
    assert [random.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    turns = Turns(list(range(7)), SplitMix64.stream(3, 0))
    assert sorted(turns.draw(3) + turns.draw(3)) != sorted(turns.draw(3) + turns.draw(3)), "one is left out"
    turns = Turns(list(range(6)), SplitMix64.stream(3, 0))
    for _ in range(3):
        assert sorted(turns.draw(2) + turns.draw(2) + turns.draw(2)) == list(range(6))


@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("beta", [20.0, 3.0, 2.0])
def test_the_reference_gradient_is_the_derivative_of_the_objective(penalty: float, beta: float):
    case = CASES["grouped"]
    rows, by = case.rows, per_unit(case.rows, case.layer)
    _, fraction = adaround.floors(case.layer)
    rng = np.random.default_rng(0)
    v = adaround.inverse_rectified_sigmoid(np.clip(fraction, 0.05, 0.95))
    slope = adaround.objective_slope(case.layer, rows, by, v, penalty, beta)
    for _ in range(20):
        at, step = tuple(rng.integers(v.shape)), 1e-5
        ends = []
        for sign in (-1, 1):
            moved = v.copy()
            moved[at] += sign * step
            ends.append(adaround.objective(case.layer, rows, by, moved, penalty, beta))
        assert slope[at] == pytest.approx((ends[1] - ends[0]) / (2 * step), rel=1e-4, abs=1e-6)


@EVERY_CASE
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_step_of_adaround(name: str, batch_size: int):
    case = CASES[name]
    options = replace(ADAROUND, batch_size=batch_size, seed=batch_size, update_bias=case.layer.bias is not None)
    found = run(case, options, adaround=True)
    expected = adaround.train(case.layer, case.rows, case.sets[0], options)
    np.testing.assert_allclose(found["losses"], expected.losses, rtol=5e-5)
    expected = finished(case, expected, free=False, update_bias=options.update_bias)
    assert (found["weight"] != expected.weight_q).mean() < 0.01
    if expected.bias_q is not None and (found["weight"] == expected.weight_q).all():
        np.testing.assert_allclose(found["bias"], expected.bias_q, atol=1)


@EVERY_CASE
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("update_bias", [False, True])
def test_every_step_of_adaquant(name: str, batch_size: int, update_bias: bool):
    """As long as float32 and float64 are surely on the same side of every rounding; after that about the same."""
    case = CASES[name]
    update_bias &= case.layer.bias is not None
    options = replace(ADAQUANT, batch_size=batch_size, seed=batch_size, update_bias=update_bias)
    found = run(case, options, adaround=False)
    expected = adaquant.train(case.layer, case.rows, case.sets[0], options)
    assert (expected.weight_q != case.layer.weight_q).mean() > 0.03, "the steps do something"
    sure = int(np.argmin([*(expected.margins > 3e-6), False]))  # the first step that is not
    assert sure >= 5
    np.testing.assert_allclose(found["losses"][:sure], expected.losses[:sure], rtol=5e-5)
    expected = finished(case, expected, free=True, update_bias=options.update_bias)
    different = (found["weight"] != expected.weight_q).mean()
    assert different < (0.01 if sure == options.iterations else 0.05)
    if update_bias and sure == options.iterations:
        np.testing.assert_allclose(found["bias"], expected.bias_q, atol=1)


@settings(max_examples=40, deadline=None)
@given(conv_cases() | conv_cases(depthwise=True) | conv_transpose_cases() | conv_transpose_cases(depthwise=True))
def test_every_step_of_a_layer_with_any_attributes(drawn: ConvCase):
    """The rows of the reference are those of onnx's operators: test_core_moments.py."""
    conv, (_, channels, *sizes) = drawn.conv, drawn.x.shape
    outputs = len(drawn.bias) // conv.groups
    case = case_of(0, conv, sizes=tuple(sizes), channels=channels // conv.groups, outputs=outputs)
    for is_adaround, method, few in ((True, adaround, ADAROUND), (False, adaquant, ADAQUANT)):
        options = replace(few, iterations=4)
        found = run(case, options, adaround=is_adaround)
        expected = method.train(case.layer, case.rows, case.sets[0], options)
        sure = 4 if is_adaround else int(np.argmin([*(expected.margins > 3e-6), False]))
        np.testing.assert_allclose(found["losses"][:sure], expected.losses[:sure], rtol=5e-5, atol=1e-12)


@pytest.mark.parametrize("warm_start", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("reg_param", [0.0, 0.001, 0.1])
@pytest.mark.parametrize("beta_range", [(20.0, 2.0), (8.0, 1.5)])
def test_the_schedule_of_adaround(warm_start: float, reg_param: float, beta_range: tuple[float, float]):
    case = CASES["matmul"]
    options = replace(ADAROUND, warm_start=warm_start, reg_param=reg_param, beta_range=beta_range)
    expected = adaround.train(case.layer, case.rows, case.sets[0], options)
    np.testing.assert_allclose(run(case, options, adaround=True)["losses"], expected.losses, rtol=5e-5)


# ---- the report --------------------------------------------------------------------------------


@EVERY_CASE
@METHODS
@pytest.mark.parametrize("holdout", [0, 5])
def test_the_report_is_the_loss_by_its_definition(name: str, is_adaround: bool, options: Options, holdout: int):
    case = replace(CASES[name], holdout=holdout)
    options = replace(options, update_bias=True)
    found = run(case, options, adaround=is_adaround)
    layer = case.layer
    assert (found["bias"] is None) == (layer.bias is None)
    assert found["iterations"] == options.iterations == len(found["losses"])
    assert found["stopped_early"] is False
    for index, chosen in enumerate(case.sets):
        assert found["samples"][index] == len(chosen)
        if not chosen:
            assert np.isnan([found["before"][index], found["after"][index]]).all()
            continue
        rows = case.rows[chosen]
        before = rows.loss(layer.real(layer.weight_q), start(layer).bias)
        after = rows.loss(layer.real(found["weight"]), final_bias(case, found))
        assert found["before"][index] == pytest.approx(before, rel=1e-5)
        assert found["after"][index] == pytest.approx(after, rel=1e-5)
        assert found["power"][index] == pytest.approx(rows.power(), rel=1e-5)
    changed = changed_rows(case, found)
    if holdout:
        assert found["improved"] == changed.sum()
    judge, final = case.rows[case.judging], (layer.real(found["weight"]), final_bias(case, found))
    assert (judge.row_losses(*final) < judge.row_losses(layer.real(layer.weight_q), start(layer).bias))[changed].all()


def test_fewer_than_twice_holdout_samples_are_all_fitted():
    case = matrix_case(1, samples=9)
    assert run(case, ADAROUND, adaround=True)["samples"] == (9, 0)
    assert run(matrix_case(1, samples=10), ADAROUND, adaround=True)["samples"] == (8, 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from([0.01, 0.3, 3.0]), st.booleans())
def test_adaround_gives_floor_or_ceil_within_the_grid(seed: int, reg_param: float, rate: float, update_bias: bool):
    case = matrix_case(seed, samples=15, inputs=6, outputs=3)
    options = replace(ADAROUND, reg_param=reg_param, learning_rate=rate, update_bias=update_bias)
    found = run(case, options, adaround=True)
    lo, hi = case.layer.rounding_range(free=False)
    assert ((found["weight"] == lo) | (found["weight"] == hi)).all()
    assert found["weight"].dtype == np.int32
    assert np.isfinite(found["losses"]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.001, 0.1, 10.0]))
def test_adaquant_stays_in_the_grid(seed: int, rate: float):
    case = matrix_case(seed, samples=15, inputs=6, outputs=3)
    found = run(case, replace(ADAQUANT, learning_rate=rate, update_bias=True), adaround=False)
    assert found["weight"].min() >= case.layer.qmin
    assert found["weight"].max() <= case.layer.qmax
    assert np.isfinite(found["losses"]).all()


@pytest.mark.parametrize(
    ("is_adaround", "options", "least"),
    [
        (True, replace(ADAROUND, iterations=800, batch_size=8), 0.75),
        (False, replace(ADAQUANT, iterations=200, batch_size=8, learning_rate=0.001), 0.9),
    ],
    ids=["adaround", "adaquant"],
)
def test_training_helps_on_samples_that_it_has_not_seen(is_adaround: bool, options: Options, least: float):
    before, after = 0.0, 0.0
    for seed in range(8):
        case = matrix_case(seed, samples=100, inputs=20, outputs=6)
        found = run(case, options, adaround=is_adaround)
        before += found["before"][1]
        after += found["after"][1]
    assert after < least * before


# ---- what must not matter ----------------------------------------------------------------------


@METHODS
@pytest.mark.parametrize("factor", [2.0**-10, 0.1, 10.0, 2.0**10])
def test_the_scale_of_activations_does_not_matter(is_adaround: bool, options: Options, factor: float):
    case = matrix_case(20, samples=60, inputs=40, outputs=50)
    options = replace(options, update_bias=is_adaround, iterations=100)
    as_is, scaled = (run(c, options, adaround=is_adaround) for c in (case, case.scaled(factor)))
    assert (as_is["weight"] != case.layer.weight_q).mean() > 0.05
    if np.frexp(factor)[0] == 0.5:
        np.testing.assert_array_equal(scaled["weight"], as_is["weight"])
        np.testing.assert_array_equal(scaled["bias"], as_is["bias"])
        np.testing.assert_array_equal(scaled["losses"], as_is["losses"] * factor**2)
    assert (scaled["weight"] == as_is["weight"]).mean() >= 0.995
    assert scaled["after"] == pytest.approx(np.array(as_is["after"]) * factor**2, rel=0.01)


@METHODS
@pytest.mark.parametrize("name", ["conv 2-D", "depthwise", "more positions than a unit", "uint8 conv", "matmul"])
def test_how_the_samples_arrive_does_not_matter(name: str, is_adaround: bool, options: Options):
    case = CASES[name]
    options, n = replace(options, update_bias=True), len(case.x)
    first = train(case.core(), case.layer, options, adaround=is_adaround)
    for batches in ([1] * n, [3, n - 5, 2]):
        assert_same_bits(first, train(case.core(batches), case.layer, options, adaround=is_adaround))


@METHODS
@pytest.mark.parametrize("name", ["conv 2-D", "depthwise", "grouped", "more positions than a unit", "gemm"])
def test_threads_do_not_matter(name: str, is_adaround: bool, options: Options):
    case = CASES[name]
    options = replace(options, update_bias=True, batch_size=8)
    first, *others = (run(case, options, adaround=is_adaround, pool=_core.ThreadPool(n)) for n in (1, 2, 5))
    for other in others:
        assert_same_bits(first, other)


def test_threads_do_not_matter_for_many_outputs():
    case = in_8_bits(matrix_case(21, samples=100, positions=9, inputs=70, outputs=65), np.uint8)
    options = replace(ADAROUND, batch_size=60, iterations=20)
    first, *others = (run(case, options, adaround=True, pool=_core.ThreadPool(n)) for n in (1, 2, 5))
    for other in others:
        assert_same_bits(first, other)


@METHODS
def test_the_seed_decides_the_order(is_adaround: bool, options: Options):
    case = CASES["gemm"]
    data = case.core()
    zero, again, other, largest = (
        train(data, case.layer, replace(options, seed=seed), adaround=is_adaround) for seed in (0, 0, 1, 2**64 - 1)
    )
    assert_same_bits(zero, again)
    assert (zero["losses"] != other["losses"]).mean() > 0.9
    assert (zero["losses"] != largest["losses"]).mean() > 0.9
    assert zero["before"] == other["before"]


@METHODS
def test_a_batch_of_all_samples_needs_no_seed(is_adaround: bool, options: Options):
    case = CASES["conv 1-D"]
    options = replace(options, batch_size=len(case.sets[0]))
    one, two = (run(case, replace(options, seed=seed), adaround=is_adaround) for seed in (1, 2))
    np.testing.assert_allclose(one["losses"], two["losses"], rtol=1e-5)


@METHODS
def test_inputs_that_are_always_zero(is_adaround: bool, options: Options):
    """A group without input keeps its nearest integers, and the other is trained as if it were alone."""
    case = CASES["grouped"]
    x = case.x.copy()
    x[:, :2] = 0
    found = run(replace(case, x=x), options, adaround=is_adaround)
    np.testing.assert_array_equal(found["weight"][:3], case.layer.weight_q[:3])
    np.testing.assert_array_equal(found["weight"][3:], run(case, options, adaround=is_adaround)["weight"][3:])


# ---- early stop --------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 5, 20])
@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("is_adaround", [True, False], ids=["adaround", "adaquant"])
def test_early_stop_ends_where_the_curve_says(window: int, patience: int, is_adaround: bool):
    """Without a regulariser the watched loss is the reconstruction loss, so that the whole curve tells."""
    case = CASES["gemm, many samples"]
    options = Options(batch_size=4, iterations=1000, learning_rate=0.02, reg_param=0, warm_start=0, update_bias=True)
    whole = run(case, options, adaround=is_adaround)
    end, best_end = early_stop(whole["losses"], window, patience)
    found = run(case, replace(options, window=window, patience=patience), adaround=is_adaround)
    assert end < 1000
    assert found["stopped_early"] is True
    assert found["iterations"] == end
    np.testing.assert_array_equal(found["losses"][:end], whole["losses"][:end])
    best = run(case, replace(options, iterations=best_end), adaround=is_adaround)
    np.testing.assert_array_equal(found["weight"], best["weight"])
    np.testing.assert_allclose(found["bias"], best["bias"], atol=0 if not is_adaround else 1)
    assert found["after"] == pytest.approx(best["after"], rel=1e-4)


def test_early_stop_waits_for_the_warm_start_of_adaround():
    case = CASES["gemm, many samples"]
    options = Options(batch_size=4, iterations=400, learning_rate=0.02, reg_param=0, warm_start=0.5, window=5)
    found = run(case, options, adaround=True)
    whole = run(case, replace(options, window=0), adaround=True)
    end, _ = early_stop(whole["losses"][200:], 5, 0)
    assert found["stopped_early"] is True
    assert found["iterations"] == 200 + end


@METHODS
def test_a_window_that_never_ends_stops_nothing(is_adaround: bool, options: Options):
    case = CASES["gemm"]
    found = run(case, replace(options, window=options.iterations + 1), adaround=is_adaround)
    assert_same_bits(found, run(case, options, adaround=is_adaround))


@pytest.mark.parametrize(
    ("is_adaround", "rate", "window", "patience"),
    [(True, 0.1, 60, 1), (False, 0.002, 300, 0)],
    ids=["adaround", "adaquant"],
)
def test_early_stop_costs_little(is_adaround: bool, rate: float, window: int, patience: int):
    """Over several layers, AdaRound with its regulariser: fewer steps, about the same loss."""
    options = Options(batch_size=8, iterations=3000, learning_rate=rate, patience=patience)
    loss, steps = [0.0, 0.0], [0, 0]
    for seed in range(16):
        case = matrix_case(seed, samples=100, inputs=20, outputs=6)
        for i, used in enumerate((0, window)):
            found = run(case, replace(options, window=used), adaround=is_adaround)
            loss[i] += found["after"][1]
            steps[i] += found["iterations"]
    assert steps[1] < 0.8 * steps[0]
    assert loss[1] < 1.05 * loss[0]


# ---- the bias ----------------------------------------------------------------------------------


def test_adaround_gives_the_best_bias_for_its_weights():
    case = CASES["matmul"]
    found = run(case, replace(ADAROUND, update_bias=True), adaround=True)
    weight, bias = case.layer.real(found["weight"]), final_bias(case, found)
    fitted, changed = case.rows[case.sets[0]], changed_rows(case, found)
    assert changed.sum() >= 3
    assert (np.abs(fitted.mean_error(weight, bias)) <= 0.5001 * case.layer.bias_scale)[changed].all()


def test_adaquant_trains_the_bias_with_the_weights():
    """Outputs that are all off by the same amount, on a grid that the weights have no need to leave."""
    case = CASES["matmul"]
    layer = replace(case.layer, bias=case.layer.bias + np.float32(0.5))
    case = replace(case, layer=layer)
    options = replace(ADAQUANT, iterations=300, learning_rate=0.01)
    without, found = (run(case, replace(options, update_bias=u), adaround=False) for u in (False, True))
    assert without["bias"] is None
    moved = final_bias(case, found) - layer.bias
    assert (moved < -0.2).all()
    assert found["after"][1] < 0.8 * without["after"][1]


@METHODS
def test_the_bias_stays_in_its_range(is_adaround: bool, options: Options):
    case = CASES["gemm"]
    far = replace(case, y=(case.y + np.float32(1e4)).astype(np.float32))
    options = replace(options, update_bias=True, learning_rate=1.0)
    found = run(far, options, adaround=is_adaround, bias_qmin=-128, bias_qmax=127)
    np.testing.assert_array_equal(found["bias"], np.full(5, 127, np.int32))


@METHODS
@pytest.mark.parametrize("missing", [["bias_scale"], ["bias", "bias_scale"]])
def test_a_bias_without_scale_stays(missing: list[str], is_adaround: bool, options: Options):
    case = CASES["gemm"]
    fixed = dict.fromkeys(missing)
    with_update, without = (
        run(case, replace(options, update_bias=u), adaround=is_adaround, **fixed) for u in (True, False)
    )
    assert with_update["bias"] is None
    assert_same_bits({**with_update, "bias": 0}, {**without, "bias": 0})
