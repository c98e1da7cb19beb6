"""Random models of 3 to 12 operators through plain quantization: valid, near the float model, and the same optimised.

500 of them; QUARK_RANDOM_GRAPHS="20000" takes so many, "20000:500" those from seed 500 on.
"""

from __future__ import annotations

import os

import pytest
from reference.drawn_operators import QUANTIZED
from reference.operator_graphs import operator_data, operator_graph
from reference.quantize_checks import SPECS, check_quantized

from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES

_ITEMS = 6
_AT_A_TIME = 25
_COUNT, _FIRST = (int(n) for n in (os.environ.get("QUARK_RANDOM_GRAPHS", "500") + ":0").split(":")[:2])
# By seed: what is wrong still, and not here to mend.
KNOWN: dict[int, str] = {}


def test_every_quantized_operator_is_drawn() -> None:
    assert set(QUANTIZED) == set(DEFAULT_OP_TYPES)
    drawn = {op for seed in range(300) for op in operator_graph(seed)[1]}
    assert drawn.issuperset(QUANTIZED)


def test_a_seed_gives_the_same_model_each_time() -> None:
    for seed in range(20):
        assert operator_graph(seed) == operator_graph(seed)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("first", range(_FIRST, _FIRST + _COUNT, _AT_A_TIME))
def test_they_are_quantized(first: int) -> None:
    wrong, passed = {}, 0
    for seed in range(first, min(first + _AT_A_TIME, _FIRST + _COUNT)):
        model, _ = operator_graph(seed)
        spec = list(SPECS)[seed % len(SPECS)]
        outcome = check_quantized(model, operator_data(model, _ITEMS, seed=seed), spec, seed=seed)
        passed += outcome.kind == "passed"
        if (outcome.kind == "failed") != (seed in KNOWN):
            wrong[seed] = f"{spec}: {outcome.kind} {outcome.about}"
    assert not wrong
    assert passed >= _AT_A_TIME // 2  # neither refused nor beyond onnxruntime
