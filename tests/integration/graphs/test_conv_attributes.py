"""Conv and ConvTranspose with any attributes, from the float model to the finetuned one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference.conv_cases import ConvCase, conv_cases, conv_transpose_cases
from reference.planned_layers import assert_is_its_plan
from small_models import Reader, autoencoder, conv3d, initializers, judged, mean_squared_error, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.config.spec import QuantGranularity
from quark.onnx.plan.build import build_plan
from quark.onnx.preparation.prepare import prepare

SOLVERS = {
    "least squares": AdaRoundConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=300),
    "least squares, free": AdaQuantConfig(),
    "gradient, free": AdaQuantConfig(solver="gradient", num_iterations=300, learning_rate=1e-3, batch_size=8),
}


def quantizer(algorithm: AdaRoundConfig | AdaQuantConfig | None = None, **weight: Any) -> ModelQuantizer:
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec(**weight))
    return ModelQuantizer(QConfig(layer, algo_config=[] if algorithm is None else [algorithm]))


def shrinks(case: ConvCase) -> bool:
    """onnx infers a wrong rank where output_shape is smaller than the input."""
    shape = getattr(case.conv, "output_shape", None) or case.x.shape[2:]
    return any(n < size for n, size in zip(shape, case.x.shape[2:], strict=True))


@settings(max_examples=25, deadline=None)
@given(
    conv_cases() | conv_transpose_cases() | conv_transpose_cases(depthwise=True),
    st.sampled_from([QuantGranularity.Tensor, QuantGranularity.Channel]),
    st.sampled_from([AdaRoundConfig(), AdaRoundConfig(solver="gradient", num_iterations=3)]),
)
def test_a_layer_with_any_attributes(case: ConvCase, granularity: QuantGranularity, algorithm: AdaRoundConfig):
    """It is in the plan as it is, and its data fits."""
    assume(not shrinks(case))
    engine = quantizer(algorithm, quant_granularity=granularity)
    quantized = engine.quantize_model(case.model, None, Reader({"x": case.x}, batch=2))
    assert engine.report.skipped == ()
    (layer,) = engine.report.layers
    assert "does not fit" not in layer.reason
    model = prepare(case.model)
    (planned,) = build_plan(model, quantized, (case.conv.op_type,)).layers
    assert_is_its_plan(planned, model, quantized, {"x": case.x})


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [autoencoder, conv3d])
def test_every_solver_brings_layers_closer_to_their_float_outputs(make: Any, solver: str):
    model = make()
    plain = quantizer(calibration_method=CalibMethod.MinMax).quantize_model(model, None, Reader(samples(model, 60)))
    engine = quantizer(SOLVERS[solver], calibration_method=CalibMethod.MinMax)
    finetuned = engine.quantize_model(model, None, Reader(samples(model, 60)))
    assert engine.report.skipped == ()
    assert {layer.op_type for layer in engine.report.layers if layer.accepted} == {"Conv", "ConvTranspose"}
    for layer in engine.report.layers:
        before, after = judged(layer)
        assert after < before < layer.power[0] or not layer.accepted
    before, after = initializers(plain), initializers(finetuned)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all(name.endswith("_quantized") for name in changed)
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, finetuned, unseen) < mean_squared_error(model, plain, unseen)
