"""Integer least squares: its report against the raw rows, its solution against NumPy and brute force."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference.conv_rows import Conv
from reference.fake_quant import affine_from_range, quantize
from reference.least_squares import QuantizedLayer, Solution, candidates, errors, start
from reference.moments import moments_of
from reference.rounding import nearest_plane, optq

from quark.onnx import _core

ONE = _core.ThreadPool(1)
HOLDOUT = 5


@dataclass(frozen=True)
class Problem:
    """A quantized layer, its inputs x (samples, K), and the outputs y (samples, O) that it should have."""

    layer: QuantizedLayer
    x: np.ndarray
    y: np.ndarray

    @property
    def held_out(self) -> np.ndarray:
        return np.arange(len(self.x)) % HOLDOUT == HOLDOUT - 1

    @property
    def sets(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Fitted and held-out rows."""
        return [(self.x[chosen], self.y[chosen]) for chosen in (~self.held_out, self.held_out)]


def problem(
    seed: int, *, outputs: int, inputs: int, samples: int = 40, with_bias: bool = True, blocks: int = 1
) -> Problem:
    """A float layer that saw slightly other inputs, rounded to 4 bits, with `blocks` scales per row if that divides it.

    x holds integers and y multiples of 1/8, so that float32 adds their products exactly.
    """
    blocks = blocks if inputs % blocks == 0 else 1
    rng = np.random.default_rng(seed)
    x = np.clip(np.rint(rng.standard_normal((samples, inputs)) @ rng.normal(0, 2, (inputs, inputs))), -8, 8)
    weight = rng.standard_normal((outputs, inputs)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    y = np.rint(8 * ((x + rng.normal(0.3, 0.3, x.shape)) @ weight.T + bias)) / 8
    symmetric = bool(rng.integers(2))
    qmin, qmax = (-7, 7) if symmetric else (0, 15)  # 4 bits: enough error to be worth the work
    parts = weight.reshape(outputs * blocks, -1)
    affine = [affine_from_range(w.min(), w.max(), qmin, qmax, symmetric=symmetric) for w in parts]
    scale = np.array([s for s, _ in affine], np.float32)
    zero_point = np.array([z for _, z in affine], np.int32)
    bias_scale = (scale[::blocks] / 64).astype(np.float32)
    weight_q = np.stack([quantize(w, s, z, qmin, qmax) for w, (s, z) in zip(parts, affine, strict=True)])
    shape = (outputs,) if blocks == 1 else (outputs, blocks)
    layer = QuantizedLayer(
        weight=weight,
        weight_q=weight_q.reshape(weight.shape),
        scale=scale.reshape(shape),
        zero_point=zero_point.reshape(shape),
        qmin=qmin,
        qmax=qmax,
        bias=(bias_scale * np.rint(bias / bias_scale)).astype(np.float32) if with_bias else None,
        bias_scale=bias_scale if with_bias else None,
    )
    return Problem(layer, x.astype(np.float32), y.astype(np.float32))


def core_of(p: Problem, kept: int = 0) -> _core.Layer:
    core = _core.Layer(p.x.shape[1], p.y.shape[1], len(p.x), 1 << 20, holdout=HOLDOUT, kept=kept)
    core.feed(p.x, p.y, ONE)
    return core


def start_of(layer: QuantizedLayer, bias_qmin: int = -(2**31), bias_qmax: int = 2**31 - 1) -> _core.QuantizedLayer:
    return _core.QuantizedLayer(
        layer.weight,
        layer.weight_q,
        layer.scale,
        layer.zero_point,
        qmin=layer.qmin,
        qmax=layer.qmax,
        bias=layer.bias,
        bias_scale=layer.bias_scale,
        bias_qmin=bias_qmin,
        bias_qmax=bias_qmax,
    )


def solve(
    core: _core.Layer,
    layer: QuantizedLayer,
    *,
    free: bool = False,
    update_bias: bool = True,
    damping: tuple[float, ...] = (1e-2, 1.0),
    max_sweeps: int = 50,
    pool: _core.ThreadPool = ONE,
) -> dict[str, Any]:
    return core.least_squares(
        start_of(layer),
        pool,
        update_bias=update_bias,
        free=free,
        damping=np.array(damping),
        max_sweeps=max_sweeps,
    )


def solution_of(found: dict[str, Any], layer: QuantizedLayer) -> Solution:
    bias = start(layer).bias
    if found["bias"] is not None:
        bias = layer.bias_scale.astype(np.float64) * found["bias"]
    return Solution(weight_q=found["weight"], bias=bias)


def error(layer: QuantizedLayer, solution: Solution, x: np.ndarray, y: np.ndarray) -> float:
    """Return the error of all outputs of a row together."""
    return float(errors(layer, solution, x, y).sum())


PROBLEMS = st.builds(
    problem,
    st.integers(0, 2**32 - 1),
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 8),
    with_bias=st.booleans(),
    blocks=st.sampled_from([1, 2, 3, 4]),
)


@settings(max_examples=60, deadline=None)
@given(PROBLEMS, st.booleans(), st.booleans())
@example(problem(1_833_546_444, outputs=1, inputs=1, with_bias=True), False, True)  # an error near the bias's rounding
@example(problem(343381, outputs=4, inputs=4, with_bias=True), False, True)  # a bias that wins by its rounding alone
def test_the_report_is_true_and_the_box_is_kept(p: Problem, free: bool, update_bias: bool):
    found = solve(core_of(p), p.layer, free=free, update_bias=update_bias)
    for index, (x, y) in enumerate(p.sets):
        assert found["rows"][index] == len(x)
        power = float((y.astype(np.float64) ** 2).sum(axis=1).mean())
        assert found["power"][index] == pytest.approx(power, rel=1e-9)
        for name, solution in (("before", start(p.layer)), ("after", solution_of(found, p.layer))):
            want = error(p.layer, solution, x, y)
            # A bias is a product that is rounded to float32, in which outputs are too: 2 |e| (2^-24 + 2^-24) |y|.
            rounding = 2**-22 * np.sqrt(want * power)
            assert found[name][index] == pytest.approx(want, rel=1e-6, abs=1e-9 * power + rounding)
    before, after = (errors(p.layer, s, *p.sets[1]) for s in (start(p.layer), solution_of(found, p.layer)))
    changed = (found["weight"] != p.layer.weight_q).any(axis=1)
    if found["bias"] is not None:
        changed |= found["bias"] != np.rint(p.layer.bias / p.layer.bias_scale)
    assert (after[changed] < before[changed]).all()
    assert found["improved"] == changed.sum()
    assert (found["candidate"] == "unchanged") == (not changed.any())
    lo, hi = p.layer.rounding_range(free=free)
    assert ((found["weight"] >= lo) & (found["weight"] <= hi)).all()
    assert (found["bias"] is None) == (p.layer.bias is None or not update_bias)


@settings(max_examples=60, deadline=None)
@given(PROBLEMS, st.booleans(), st.booleans())
def test_each_output_gets_the_best_candidate_of_the_reference(p: Problem, free: bool, update_bias: bool):
    options = {"free": free, "update_bias": update_bias, "max_sweeps": 50}
    found = solve(core_of(p), p.layer, damping=(1e-2, 1.0), **options)
    fitted, held_out = p.sets
    expected = candidates(p.layer, *fitted, damping=[1e-2, 1.0], **options)
    best = np.min([errors(p.layer, candidate, *held_out) for candidate in expected], axis=0)
    reached = errors(p.layer, solution_of(found, p.layer), *held_out)
    np.testing.assert_allclose(reached, best, rtol=1e-6, atol=1e-9 * found["power"][1])


@settings(max_examples=40, deadline=None)
@given(
    st.builds(
        problem,
        st.integers(0, 2**32 - 1),
        outputs=st.integers(1, 40),
        inputs=st.integers(33, 150),
        samples=st.integers(10, 33),
        with_bias=st.booleans(),
        blocks=st.sampled_from([1, 2, 3, 4]),
    ),
    st.booleans(),
    st.booleans(),
)
def test_kept_rows_lead_where_moments_lead(p: Problem, free: bool, update_bias: bool):
    """Nothing of size K x K is made of them; what is reported is true."""
    options = {"free": free, "update_bias": update_bias, "damping": (1e-2, 1.0)}
    rows, moments = solve(core_of(p, 1000), p.layer, **options), solve(core_of(p), p.layer, **options)
    same = (rows["weight"] == moments["weight"]).all(axis=1)
    assert (~same).sum() <= 1 + len(same) // 10  # a rounding that float32 decides otherwise changes all that follow
    for index, (x, y) in enumerate(p.sets):
        assert rows["power"][index] == pytest.approx(moments["power"][index], rel=1e-5)
        want = error(p.layer, solution_of(rows, p.layer), x, y)
        assert rows["after"][index] == pytest.approx(want, rel=1e-4, abs=1e-6 * rows["power"][index])
        assert rows["before"][index] == pytest.approx(moments["before"][index], rel=1e-4)


@settings(max_examples=40, deadline=None)
@given(PROBLEMS, st.booleans(), st.booleans(), st.sampled_from([1e-3, 0.1, 1.0]))
def test_no_step_of_a_single_weight_or_bias_improves_the_fit(p: Problem, free: bool, update_bias: bool, damping: float):
    """Changed weights are at a minimum of the damped error, biases at one of the true error."""
    found = solve(core_of(p), p.layer, free=free, update_bias=update_bias, damping=(damping,), max_sweeps=500)
    changed = (found["weight"] != p.layer.weight_q).any(axis=1)
    layer, (x, y) = p.layer, p.sets[0]
    gram, cross, mean_x, mean_y, _ = (moment[0] for moment in moments_of(x[None], y[None])[1:])
    if found["bias"] is not None:
        gram, cross = gram - np.outer(mean_x, mean_x), cross - np.outer(mean_y, mean_x)
    else:
        cross = cross - np.outer(start(layer).bias, mean_x)
    lam = damping * np.trace(gram) / len(gram)
    gram, cross = gram + lam * np.eye(len(gram)), cross + lam * layer.weight

    def damped(weight_q: np.ndarray, o: int) -> float:
        w = layer.real(weight_q)[o]
        return float(w @ gram @ w - 2 * w @ cross[o])

    lo, hi = layer.rounding_range(free=free)
    for o, k in itertools.product(np.flatnonzero(changed), range(layer.weight.shape[1])):
        reached = damped(found["weight"], o)
        for q in range(lo[o, k], hi[o, k] + 1):
            moved = found["weight"].copy()
            moved[o, k] = q
            assert damped(moved, o) >= reached - 1e-9 * abs(reached)
    if found["bias"] is not None:
        reached = errors(layer, solution_of(found, layer), x, y)
        for step in (-1, 1):
            moved = errors(layer, solution_of({**found, "bias": found["bias"] + step}, layer), x, y)
            assert (moved[changed] >= reached[changed] * (1 - 1e-12)).all()


def test_brute_force_finds_little_that_is_better():
    """All 2^K roundings of tiny rows: the best one is found often, and never missed by far."""
    excess, found_best = [], 0
    for seed in range(60):
        p = problem(seed, outputs=1, inputs=6, samples=100, with_bias=False)
        found = solve(core_of(p), p.layer, damping=(1e-9,))
        lo, hi = p.layer.rounding_range(free=False)
        boxes = itertools.product(*zip(lo[0], hi[0], strict=True))
        fitted = p.sets[0]
        errors = [error(p.layer, Solution(weight_q=np.array([q]), bias=np.zeros(1)), *fitted) for q in boxes]
        if not found["improved"]:
            continue
        found_best += found["after"][0] <= min(errors) * (1 + 1e-9)
        excess.append(found["after"][0] / min(errors))
    assert len(excess) > 15
    assert found_best >= 0.4 * len(excess)
    assert max(excess) < 2


def test_more_freedom_fits_better():
    """Over many problems: the bias alone, then floor or ceil, then any integer."""
    fitted = {"start": 0.0, "box": 0.0, "free": 0.0}
    for seed in range(20):
        p = problem(seed, outputs=4, inputs=12, samples=400)
        core = core_of(p)
        for free in (False, True):
            found = solve(core, p.layer, free=free, damping=(1e-4,))
            fitted["free" if free else "box"] += found["after"][0] / found["power"][0]
        fitted["start"] += found["before"][0] / found["power"][0]
    assert fitted["free"] <= fitted["box"] * 1.001
    assert fitted["box"] < 0.7 * fitted["start"]


def test_an_input_that_is_always_zero_keeps_its_rounding():
    p = problem(1, outputs=3, inputs=6, samples=100)
    p.x[:, 2] = 0
    found = solve(core_of(p), p.layer)
    assert found["improved"]
    np.testing.assert_array_equal(found["weight"][:, 2], p.layer.weight_q[:, 2])


@pytest.mark.parametrize("damping", [(0.0,), (0.0, 0.1)])
def test_a_singular_gram_matrix_is_survived(damping: tuple[float, ...]):
    p = problem(2, outputs=3, inputs=6, samples=100)
    p.x[:, 1] = p.x[:, 0]
    p.x[:, 2] = 3
    found = solve(core_of(p), p.layer, damping=damping)
    assert found["after"][1] <= found["before"][1]
    lo, hi = p.layer.rounding_range(free=False)
    assert ((found["weight"] >= lo) & (found["weight"] <= hi)).all()


def test_the_bias_takes_up_what_the_weights_leave():
    """Outputs that are all off by the same amount: the bias alone mends it."""
    p = problem(3, outputs=3, inputs=4, samples=100)
    exact = error(p.layer, start(p.layer), p.x, p.y)
    shifted = replace(p, y=(p.y + np.float32(100)).astype(np.float32))
    found = solve(core_of(shifted), p.layer, damping=())
    assert found["candidate"] == "bias only"
    np.testing.assert_array_equal(found["weight"], p.layer.weight_q)
    assert found["after"][0] < 1.1 * exact


def test_the_bias_stays_in_its_range():
    p = problem(4, outputs=2, inputs=4, samples=100)
    far = p.y + np.float32(1e4)
    core = core_of(replace(p, y=far))
    start = start_of(p.layer, bias_qmin=-128, bias_qmax=127)
    found = core.least_squares(start, ONE, update_bias=True, free=False, damping=np.array([0.1]), max_sweeps=5)
    assert found["bias"].max() == 127
    assert found["bias"].min() >= -128


def test_an_output_that_stays_keeps_a_bias_at_the_end_of_int32():
    p = problem(4, outputs=3, inputs=4, samples=100)
    end = 2**31 - 1
    bias = p.layer.bias.copy()
    bias[0] = end * p.layer.bias_scale[0]
    y = p.y.copy()
    y[:, 0] = p.x @ p.layer.real(p.layer.weight_q)[0] + bias[0]  # nothing to improve
    layer = replace(p.layer, bias=bias)
    found = solve(core_of(replace(p, layer=layer, y=y)), layer)
    np.testing.assert_array_equal(found["weight"][0], layer.weight_q[0])
    assert found["bias"][0] == end


@pytest.mark.parametrize(("groups", "channels", "outputs"), [(3, 2, 4), (6, 1, 1)], ids=["grouped", "depthwise"])
@pytest.mark.parametrize(("free", "update_bias"), [(False, True), (True, True), (True, False)])
def test_all_groups_are_solved_in_one_call(groups: int, channels: int, outputs: int, free: bool, update_bias: bool):
    """The errors add up over the groups, and each group gets what it would get alone."""
    conv = Conv(kernel=(3,), strides=(2,), dilations=(1,), pads=(1, 1), auto_pad="NOTSET", groups=groups)
    rng = np.random.default_rng(7)
    x = rng.integers(-8, 9, (20, groups * channels, 9)).astype(np.float32)
    rows = conv.rows(x)
    parts = [problem(g, outputs=outputs, inputs=3 * channels).layer for g in range(groups)]
    parts = [replace(part, qmin=-7, qmax=15) for part in parts]
    y_rows = np.stack([(r + rng.normal(0.2, 0.5, r.shape)) @ p.weight.T for r, p in zip(rows, parts, strict=True)])
    y_rows = (np.rint(8 * y_rows) / 8).astype(np.float32)
    y = y_rows.reshape(groups, 20, 5, outputs).transpose(1, 0, 3, 2).reshape(20, groups * outputs, 5)
    core = _core.Layer(
        3 * channels, outputs, 20, 1 << 20, groups=groups, conv=((3,), (2,), (1,), (1, 1), 0), holdout=HOLDOUT
    )
    core.feed(x, np.ascontiguousarray(y), ONE)
    per_row = ("weight", "weight_q", "scale", "zero_point", "bias", "bias_scale")
    joined = replace(parts[0], **{n: np.concatenate([getattr(part, n) for part in parts]) for n in per_row})
    found = solve(core, joined, free=free, update_bias=update_bias, damping=(0.1,))
    assert found["improved"] or not update_bias
    solution = solution_of(found, joined)
    held_out = np.repeat(np.arange(20) % HOLDOUT == HOLDOUT - 1, 5)
    after = np.zeros(2)
    for g, part in enumerate(parts):
        mine = slice(g * outputs, (g + 1) * outputs)
        own = Solution(weight_q=solution.weight_q[mine], bias=solution.bias[mine])
        sets = [(rows[g][chosen], y_rows[g][chosen]) for chosen in (~held_out, held_out)]
        after += [error(part, own, *rows_of_set) for rows_of_set in sets]
        alone = candidates(part, *sets[0], free=free, update_bias=update_bias, damping=[0.1], max_sweeps=50)
        best = np.min([errors(part, candidate, *sets[1]) for candidate in alone], axis=0)
        np.testing.assert_allclose(errors(part, own, *sets[1]), best, rtol=1e-6)
    assert found["after"] == pytest.approx(after, rel=1e-6)


def test_threads_do_not_matter():
    p = problem(8, outputs=70, inputs=130, samples=300)
    one, three = (solve(core_of(p), p.layer, pool=_core.ThreadPool(n), max_sweeps=5) for n in (1, 3))
    for name, value in one.items():
        np.testing.assert_array_equal(value, three[name], err_msg=name)


@pytest.mark.parametrize("where", ["x", "y"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("sample", [0, HOLDOUT - 1])
def test_data_that_is_not_finite_is_refused(where: str, bad: float, sample: int):
    p = problem(9, outputs=2, inputs=3)
    getattr(p, where)[sample, 0] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        solve(core_of(p), p.layer)


def test_without_held_out_rows_nothing_can_be_judged():
    p = problem(10, outputs=2, inputs=3)
    core = _core.Layer(3, 2, len(p.x), 1 << 20)
    core.feed(p.x, p.y, ONE)
    with pytest.raises(ValueError, match="too little data"):
        solve(core, p.layer)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_the_references_agree_that_optq_is_the_nearest_plane(seed: int, inputs: int):
    """arXiv 2507.18553: OPTQ is Babai's nearest plane with the columns in reverse order."""
    p = problem(seed, outputs=1, inputs=inputs)
    gram = p.x.T.astype(np.float64) @ p.x / len(p.x) + np.eye(inputs)
    lo, hi = p.layer.rounding_range(free=False)
    rest = float(p.layer.scale[0]), p.layer.zero_point[0]
    target = np.linalg.solve(gram, p.x.T.astype(np.float64) @ p.y[:, 0])
    forwards = optq(target, gram, *rest, lo[0], hi[0])
    backwards = nearest_plane(target[::-1], gram[::-1, ::-1], *rest, lo[0][::-1], hi[0][::-1])[::-1]
    np.testing.assert_array_equal(forwards, backwards)
