"""Errors of layers on one measure, and the verdicts of the comparison of the gradient loops."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def layer_errors(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("layer_errors")


@pytest.fixture
def gradient_rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gradient_rows")


def test_the_measure_is_the_mean_over_all_elements(layer_errors: Any) -> None:
    difference = np.random.default_rng(0).standard_normal((5, 7, 3, 3))  # samples, channels, positions
    fitted, held_out = difference[:4], difference[4:]
    pair = tuple(float((part**2).sum(1).mean()) for part in (fitted, held_out))
    assert layer_errors.mean_square(pair, (4 * 9, 9), 7) == pytest.approx(float((difference**2).mean()))


def test_the_measure_without_rows_of_a_kind(layer_errors: Any) -> None:
    assert layer_errors.mean_square((6.0, math.nan), (10, 0), 2) == 3
    assert math.isnan(layer_errors.mean_square((math.nan, math.nan), (0, 0), 2))


def test_first_layers_that_agree_but_for_rounding_are_accepted(layer_errors: Any) -> None:
    peer = {"a": [0.000070, 0.000055], "b": [0.1, 0.05]}
    layer_errors.check_same_measure({"a": [0.0000704, 0.00006], "b": [0.5, 0.2]}, peer)  # later layers may differ


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"a": [0.0073, 0], "b": [0.1, 0]}, "'a': before finetuning"),
        ({"a": [0.0070 * 16, 0], "b": [0.1, 0]}, "'a': before finetuning"),
        ({"a": [math.nan, 0], "b": [0.1, 0]}, "'a': before finetuning"),
        ({"b": [0.0070, 0], "a": [0.1, 0]}, "first layer is 'b'"),
        ({"a": [0.0070, 0]}, r"only one side tuned: \['b'\]"),
        ({"a": [0.0070, 0], "b": [0.1, 0], "c": [0.1, 0]}, r"only one side tuned: \['c'\]"),
    ],
)
def test_numbers_that_mean_something_else_are_refused(layer_errors: Any, ours: Any, message: str) -> None:
    with pytest.raises(layer_errors.CheckError, match=message):
        layer_errors.check_same_measure(ours, {"a": [0.0070, 0.0055], "b": [0.1, 0.05]})


def test_share_of_layers_at_most_the_peers(layer_errors: Any) -> None:
    peer = {name: [1, 0.000055] for name in "abcd"}
    ours = {"a": [1, 0.00004], "b": [1, 0.0000554], "c": [1, 0.0000556], "d": [1, math.nan]}  # b: as far as is printed
    assert layer_errors.share_at_most_peers(ours, peer) == 0.5


def figures(**other: Any) -> dict[str, Any]:
    errors = {str(layer): [1.0, 0.5] for layer in range(10)}
    result = {"loop_s": 5.0, "others_cpu": 0.0, "plain": {"mse": 0.07, "agree": 99.0}, "layer_errors": errors}
    return result | other


def verdicts(gradient_rows: Any, index: int, ours: dict[str, Any], peer: dict[str, Any]) -> dict[str, bool]:
    return {v.what: v.holds for v in gradient_rows.judge_gradient(gradient_rows.GRADIENT_ROWS[index], ours, peer)}


def test_equal_results_hold_where_time_does(gradient_rows: Any) -> None:
    for index, row in enumerate(gradient_rows.GRADIENT_ROWS):
        just = figures(loop_s=5 / row.loop_of_peer * 1.001)
        assert all(verdicts(gradient_rows, index, figures(), just).values()), row.name
        late = verdicts(gradient_rows, index, figures(loop_s=5.01), just)
        assert [what for what, holds in late.items() if not holds] == ["loop, ratio"], row.name


def test_worse_results_are_missed_floors(gradient_rows: Any) -> None:
    peer = figures(loop_s=1000.0)
    worse = figures(
        plain={"mse": 4.7, "agree": 98.8},
        layer_errors=figures()["layer_errors"] | {"0": [1.0, 0.6], "1": [1.0, 0.6]},
    )
    layers, agree = "layers with at most amd-quark's error", "agreement %, amd-quark's"
    missed = [
        {what for what, holds in verdicts(gradient_rows, index, worse, peer).items() if not holds}
        for index in range(len(gradient_rows.GRADIENT_ROWS))
    ]
    assert missed == [{"logit mse, ratio", layers}, {"logit mse, ratio"}, {"logit mse", agree, layers}, {agree}]


def test_nine_layers_in_ten_are_enough(gradient_rows: Any) -> None:
    one_worse = figures(layer_errors=figures()["layer_errors"] | {"0": [1.0, 0.6]})
    assert all(verdicts(gradient_rows, 0, one_worse, figures(loop_s=1000.0)).values())


def test_a_time_taken_beside_others_is_marked(gradient_rows: Any) -> None:
    row = gradient_rows.GRADIENT_ROWS[0]
    for ours, peer in ((0.2, 0.0), (0.0, 0.2)):
        loop, *others = gradient_rows.judge_gradient(row, figures(others_cpu=ours), figures(others_cpu=peer))
        assert loop.noisy
        assert not any(v.noisy for v in others)


def test_another_number_of_samples_drops_the_floors_that_hold_for_a_number(gradient_rows: Any) -> None:
    names = {row.name for row in gradient_rows.GRADIENT_ROWS}
    assert len(names) == len(gradient_rows.GRADIENT_ROWS)
    row = gradient_rows.GRADIENT_ROWS[2].with_samples(16)
    assert row.name == "mobilenet_v1-16-adaround"
    left = {v.what for v in gradient_rows.judge_gradient(row, figures(), figures())}
    assert left == {"loop, ratio", "layers with at most amd-quark's error"}
