"""analyse(): what each quantizer of a model does alone, and what the model gains where it is cured, by NumPy."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import onnx
import pytest
from foreign import copy_of, statically_quantized
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import Arrays, Reader, build, initializers, run, samples, separable_cnn

from quark.onnx import (
    DataError,
    Diagnosis,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    UnsupportedError,
    analyse,
)
from quark.onnx.diagnosis import Cure, Finding


def quantized(model: onnx.ModelProto, data: Arrays) -> onnx.ModelProto:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), QuantizeAllOpTypes=True)
    return ModelQuantizer(config).quantize_model(model, None, Reader(data))


def error(want: np.ndarray, have: np.ndarray) -> float:
    return float(((have - want).astype(np.float64) ** 2).mean() / want.astype(np.float64).var())


def two_scales() -> onnx.ModelProto:
    """Values of some hundreds beside values below 1 in one output."""
    random = np.random.default_rng(0)
    return build(
        """(float[N,8] x) => (float[N,8] y) {
            [large] a = Gemm(x, a_w, a_b) [small] b = Gemm(x, b_w, b_b) [joint] y = Concat<axis=1>(a, b)
        }""",
        a_w=300 * random.normal(size=(8, 4)), a_b=random.normal(size=4),
        b_w=0.1 * random.normal(size=(8, 4)), b_b=0.1 * random.normal(size=4),
    )  # fmt: skip


def found_in(found: Diagnosis, name: str, kind: str = "activation"):
    return next(finding for finding in found.findings if (finding.name, finding.kind) == (name, kind))


def test_what_destroys_a_model_comes_first_and_its_cure_is_measured() -> None:
    model = two_scales()
    data = samples(model, 64)
    found = analyse(model, quantized(model, data), data)
    worst = found.findings[0]
    assert (worst.name, worst.kind) == ("y", "activation")
    assert worst.alone == pytest.approx(found.activations, rel=0.05)
    assert found.cures == (("y", "16 bits"),)
    assert found.cured < 0.02 * found.error
    cures = {cure.name: cure for cure in worst.cures}
    assert set(cures) == {"16 bits", "float"}
    assert cures["float"].measured == pytest.approx(found.error, rel=0.05)


def test_the_weights_of_a_layer_alone_are_those_of_the_quantized_model() -> None:
    """Beside the float model with that layer's dequantized weight and bias."""
    model = two_scales()
    data = samples(model, 16)
    q = quantized(model, data)
    values = initializers(q)
    other = copy_of(model)
    for tensor in other.graph.initializer:
        if tensor.name in ("b_w", "b_b"):
            codes = values[f"{tensor.name}_quantized"]
            scale = next(values[node.input[1]] for node in q.graph.node if node.input[0] == f"{tensor.name}_quantized")
            real = codes.astype(np.float32) * scale.reshape(-1)[0]
            tensor.CopyFrom(numpy_helper.from_array(real.reshape(codes.shape).astype(np.float32), tensor.name))
    (want,), (have,) = (ReferenceEvaluator(m).run(None, data) for m in (model, other))
    parts = [error(want[:, columns], have[:, columns]) for columns in (slice(4), slice(4, 8))]
    assert found_in(analyse(model, q, data), "small", "weights").alone == pytest.approx(np.mean(parts), rel=1e-3)


def test_a_wide_channel_is_told_of_and_cured_by_scales_of_channels() -> None:
    random = np.random.default_rng(1)
    weight = random.normal(size=(8, 6))
    weight[:, 0] *= 100
    model = build("(float[N,8] x) => (float[N,6] y) { [layer] y = Gemm(x, w, b) }", w=weight, b=np.zeros(6))
    data = samples(model, 64)
    found = found_in(analyse(model, quantized(model, data), data), "layer", "weights")
    assert "times the median" in found.facts[0]
    per_channel = next(cure for cure in found.cures if cure.name == "per channel")
    assert per_channel.predicted > 0.9 * found.alone or per_channel.measured > 0


def test_figures_add_up() -> None:
    model = separable_cnn()
    data = samples(model, 40)
    q = quantized(model, data)
    found = analyse(model, q, data, samples=12, cured=3)
    assert found.samples == 12
    assert [len(finding.cures) > 0 for finding in found.findings[:4]] == [True, True, True, False]
    few = {name: array[:12] for name, array in data.items()}
    (want,), (have,) = run(model, few), run(q, few)
    assert found.error == pytest.approx(error(want, have), rel=0.05)
    for kind in ("activation", "weights"):
        assert sum(f.share for f in found.findings if f.kind == kind) == pytest.approx(1)
    measured = [finding.cures[-1].measured for finding in found.findings[:3]]
    assert measured == sorted(measured, reverse=True)
    gains = [finding.gain for finding in found.findings[3:]]
    assert gains == sorted(gains, reverse=True)
    assert not found.notes
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["findings"][0]["name"] == found.findings[0].name


def test_the_ranking_is_that_of_gains_beyond_chance() -> None:
    """The last gain is a third of what its standard error calls chance, and would turn the order round."""
    gains = [(3.0, 0.9, 0.1), (2.0, 0.7, 0.1), (1.0, 0.5, 0.1), (0.1, 5.0, 5.0)]
    findings = tuple(
        Finding(
            name=str(predicted), kind="weights", tensors=(), share=0.25, alone=0.0, gain=predicted,
            cures=(Cure("float", predicted, measured, standard_error),),
        )
        for predicted, measured, standard_error in gains
    )  # fmt: skip
    found = Diagnosis(samples=4, error=1.0, activations=0.0, weights=1.0, findings=findings, cured=1.0)
    assert found.rank_correlation == pytest.approx(1)
    assert math.isnan(dataclasses.replace(found, findings=findings[1:]).rank_correlation)


def test_a_model_of_another_tool() -> None:
    model = separable_cnn()
    data = samples(model, 40)
    found = analyse(model, statically_quantized(model, data), data, samples=8)
    assert {f.name for f in found.findings if f.kind == "weights"} == {"stem", "dw1", "pw1", "dw2", "pw2", "classes"}
    assert math.isfinite(found.cured)
    assert found.cured <= found.error


def test_what_cannot_be_analysed() -> None:
    model = separable_cnn()
    data = samples(model, 4)
    q = quantized(model, data)
    with pytest.raises(ModelError, match="the float model is quantized"):
        analyse(q, q, data)
    with pytest.raises(ModelError, match="nothing to analyse"):
        analyse(model, model, data)
    with pytest.raises(DataError):
        analyse(model, q, [])
    drawn = build("(float[N,4] x) => (float[N,4] y) { r = RandomNormalLike(x) y = Add(x, r) }")
    with pytest.raises(UnsupportedError, match="random"):
        analyse(drawn, q, samples(drawn, 4))
