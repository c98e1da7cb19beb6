"""ONNX's own tests of its operators through plain quantization, and those with a weight through AdaRound.

Every tenth of them; QUARK_BACKEND_TESTS=all takes all.
"""

from __future__ import annotations

import os

import pytest
from onnx import numpy_helper
from reference.backend_nodes import backend_tests
from reference.quantize_checks import check_quantized

from quark.onnx import AdaRoundConfig
from quark.onnx.config.algorithm import TUNABLE_OP_TYPES

_STEP = 1 if os.environ.get("QUARK_BACKEND_TESTS") == "all" else 10
_ITEMS = 10  # the same each


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_plain_quantization() -> None:
    tests = backend_tests()
    wrong, passed = {}, 0
    for name in sorted(tests)[::_STEP]:
        model, inputs = tests[name]
        if inputs is not None:
            outcome = check_quantized(model, [inputs] * 2, "UInt8 Int8")
            passed += outcome.kind == "passed"
            if outcome.kind == "failed":
                wrong[name] = outcome.about
    assert not wrong
    assert passed > 0.6 * len(sorted(tests)[::_STEP])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_adaround_where_there_is_a_weight() -> None:
    """The weight is an input there: it becomes an initializer."""
    wrong, passed = {}, 0
    for name, (model, inputs) in backend_tests().items():
        nodes = [node for node in model.graph.node if node.op_type in TUNABLE_OP_TYPES and len(node.input) > 1]
        if inputs is None or not nodes or (_STEP > 1 and "expanded" in name):
            continue
        fixed = type(model)()
        fixed.CopyFrom(model)
        for weight in {w for node in nodes for w in node.input[1:] if w in inputs}:
            fixed.graph.initializer.append(numpy_helper.from_array(inputs[weight], weight))
        given = {k: v for k, v in inputs.items() if k not in {t.name for t in fixed.graph.initializer}}
        if not given:
            continue
        outcome = check_quantized(fixed, [given] * _ITEMS, "UInt8 Int8", AdaRoundConfig())
        passed += outcome.kind == "passed"
        if outcome.kind == "failed":
            wrong[name] = outcome.about
    assert not wrong
    assert passed >= 20
