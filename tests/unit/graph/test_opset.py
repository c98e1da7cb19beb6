"""A model is raised to the opset that a number format needs, or stays as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import MODELS, build, run, samples

from quark.onnx.graph.opset import opset_of
from quark.onnx.graph.opset import raised as at_opset
from quark.onnx.inference.sessions import Engine
from quark.onnx.preparation.prepare import prepare, prepared_on


@pytest.mark.parametrize("name", MODELS)
def test_a_raised_model_computes_the_same(name: str):
    model = MODELS[name]()
    before = model.SerializeToString()
    raised = at_opset(model, 21)
    assert model.SerializeToString() == before
    assert (opset_of(model), opset_of(raised)) == (17, 21)
    onnx.checker.check_model(raised, full_check=True)
    data = samples(model, 3)
    for expected, actual in zip(run(model, data), run(raised, data), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)
    assert [node.name for node in raised.graph.node if node.name] == [node.name for node in model.graph.node]


def test_operators_of_other_domains_stay():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]> g (float[N,3] x) => (float[N,3] y) '
        "{ y = com.microsoft.FastGelu(x) }"
    )
    raised = at_opset(model, 21)
    assert opset_of(raised) == 21
    data = {"x": np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(run(raised, data)[0], run(model, data)[0])


@pytest.mark.parametrize("batch", ["1", "N"])
def test_a_model_that_the_converter_breaks_stays(batch: str):
    """GroupNormalization of opset 18 has a scale per group, that of 21 one per channel; the converter changes none.

    With a free batch onnxruntime loads the result and fails when it runs.
    """
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 18]> g (float[{batch},8,4] x) => (float[{batch},8,4] y) '
        "<float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}> { y = GroupNormalization<num_groups=2>(x, s, b) }"
    )
    prepared = prepared_on(model, ONES, Engine(1), opset=21)
    assert opset_of(prepared.model) == 18
    (note,) = prepared.notes
    assert note.startswith("preparation: opset 21 was left out: ")


ONES = [{"x": np.ones((1, 8, 4), np.float32)}, {"x": -np.ones((1, 8, 4), np.float32)}]
RELU = "(float[N,8,4] x) => (float[N,8,4] y) { y = Relu(x) }"


def test_a_model_that_the_converter_changes_stays(monkeypatch: pytest.MonkeyPatch):
    def negate(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(model)
        result.opset_import[0].version = opset
        result.graph.node[0].op_type = "Neg"
        return result

    monkeypatch.setattr(onnx.version_converter, "convert_version", negate)
    prepared = prepared_on(build(RELU), ONES, Engine(1), opset=21)
    assert [node.op_type for node in prepared.model.graph.node] == ["Relu"]
    assert prepared.notes == ("preparation: opset 21 was left out: output 'y' would be off by -6 dB",)


def test_a_model_that_the_converter_refuses_stays(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> onnx.ModelProto:
        raise RuntimeError("no adapter")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    prepared = prepared_on(build(RELU), ONES, Engine(1), opset=21)
    assert opset_of(prepared.model) == 17
    (note,) = prepared.notes
    assert note.startswith("preparation: opset 21 was left out: ")
    assert "no adapter" in note


def test_lengths_that_an_initializer_claims_are_never_allocated():
    """Raising an opset draws no data by the shapes that a model states."""
    model = build("(float[N,3] x, float[536870912] huge) => (float[N,3] y) { y = Relu(x) }", opset=11)
    assert opset_of(prepare(model, opset=21)) == 21


@pytest.mark.parametrize(("opset", "expected"), [(13, 17), (17, 17), (21, 21)])
def test_prepare_raises_to_the_opset_that_is_asked_for(opset: int, expected: int):
    model = MODELS["separable"]()
    prepared = prepare(model, opset=opset)
    assert opset_of(prepared) == expected
    assert prepared.ir_version >= onnx.helper.find_min_ir_version_for(prepared.opset_import)
    data = samples(model, 3)
    np.testing.assert_allclose(run(prepared, data)[0], run(model, data)[0], rtol=1e-4, atol=1e-5)
