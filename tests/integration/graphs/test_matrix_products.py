"""MatMul and Gemm in all forms that models have: the weight on either side, with and without a bias, of any rank."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from foreign import statically_quantized
from hypothesis import given, settings
from onnx.reference import ReferenceEvaluator
from reference.planned_layers import assert_is_its_plan
from reference.product_cases import ProductCase, product_cases
from small_models import Arrays, Reader, Weights, build, by_set, mean_squared_error, run, samples, scaled

from quark.onnx import (
    AdaRoundConfig,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    UInt8Spec,
    finetune,
)
from quark.onnx.plan.build import build_plan

SOLVERS = [AdaRoundConfig(), AdaRoundConfig(solver="gradient", num_iterations=3)]
PER_TENSOR, PER_CHANNEL = Int8Spec(), Int8Spec(quant_granularity=QuantGranularity.Channel)


def quantized_and_report(
    model: onnx.ModelProto, data: Arrays, *, weight: Int8Spec = PER_TENSOR, tune: bool = True, **options: object
) -> tuple[onnx.ModelProto, Report]:
    algorithms = [AdaRoundConfig(**options)] if tune else []
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=algorithms))
    return quantizer.quantize_model(model, None, Reader(data)), quantizer.report


@given(product_cases())
@settings(max_examples=80, deadline=None)
def test_a_product_with_any_attributes(case: ProductCase) -> None:
    """It is in the plan as onnxruntime and onnx compute it; what both solvers report is the error of that output."""
    float_model, quantized = case.float_model, case.quantized
    want, have = run(float_model, {"x": case.x})[0], run(quantized, {"x": case.x})[0]
    for model, output in ((float_model, want), (quantized, have)):
        (reference,) = ReferenceEvaluator(model).run(None, {"x": case.x})
        np.testing.assert_allclose(output, reference, rtol=1e-4, atol=1e-4)
    plan = build_plan(float_model, quantized, (case.op_type,))
    assert plan.skipped == ()
    assert_is_its_plan(*plan.layers, float_model, quantized, {"x": case.x})
    if case.attributes.get("transA"):
        return  # its first axis does not count samples
    error = ((have.astype(np.float64) - want) ** 2).sum(axis=-2 if case.weight_first else -1)
    for config in SOLVERS:
        _, report = finetune(float_model, quantized, None, Reader({"x": case.x}, batch=3), config)
        (layer,) = report.layers
        expected = by_set(error, config.solver)
        np.testing.assert_allclose(layer.before, expected, rtol=1e-3, atol=1e-5 * float((want**2).sum() / error.size))


def left() -> onnx.ModelProto:
    """Products with their weight first, as of models that were turned around: x (N, 12, 5) to y (N, 6, 5)."""
    w = Weights(0)
    gains = w.gains(16)
    return build(
        """(float[N,12,5] x) => (float[N,6,5] y) {
            [first] t1 = MatMul(first_w, x)
            [prelu] t2 = PRelu(t1, slopes)
            [second] y = MatMul(second_w, t2)
        }""",
        first_w=scaled(w.conv(16, 12), gains), second_w=w.conv(6, 16, gains=gains),
        slopes=np.linspace(0, 0.3, 16)[:, None],
    )  # fmt: skip


@pytest.mark.parametrize("solver", ["auto", "gradient"])
@pytest.mark.parametrize("weight", [PER_TENSOR, PER_CHANNEL], ids=["per tensor", "per channel"])
def test_a_weight_that_comes_first(weight: Int8Spec, solver: str) -> None:
    model = left()
    data, unseen = samples(model, 60), samples(model, 60, seed=1)
    plain, _ = quantized_and_report(model, data, weight=weight, tune=False)
    tuned, report = quantized_and_report(model, data, weight=weight, solver=solver)
    assert [(layer.name, layer.inputs, layer.outputs) for layer in report.layers] == [
        ("first", 12, 16),
        ("second", 16, 6),
    ]
    assert not report.skipped
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)
    np.testing.assert_allclose(run(tuned, unseen, optimise=True)[0], run(tuned, unseen)[0], atol=0.2)


def test_a_weight_that_comes_first_quantized_by_another_tool() -> None:
    model = left()
    data, unseen = samples(model, 60), samples(model, 60, seed=1)
    static = statically_quantized(model, data)
    tuned, report = finetune(model, static, None, Reader(data), AdaRoundConfig())
    assert not report.skipped
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, static, unseen)
    per_input = statically_quantized(model, data, per_channel=True)
    with pytest.raises(ModelError, match=r"first \(MatMul\): its weight scale is neither .* nor one per output"):
        finetune(model, per_input, None, Reader(data), AdaRoundConfig())


def test_the_error_of_a_weight_that_comes_first_is_that_of_its_output() -> None:
    weight = Weights(0).conv(4, 6)
    model = build("(float[N,6,5] x) => (float[N,4,5] y) { [layer] y = MatMul(w, x) }", w=weight)
    quantized = build(
        """(float[N,6,5] x) => (float[N,4,5] y) {
            w_real = DequantizeLinear(w_q, w_scale)
            [layer] y = MatMul(w_real, x)
        }""",
        w_q=np.clip(np.rint(weight / 0.02), -127, 127).astype(np.int8), w_scale=0.02,
    )  # fmt: skip
    data = samples(model, 60)
    tuned, report = finetune(model, quantized, None, Reader(data), AdaRoundConfig())
    (layer,) = report.layers
    assert layer.rows == (48 * 5, 12 * 5)
    for result, reported in ((quantized, layer.before), (tuned, layer.after)):
        error = ((run(result, data)[0] - run(model, data)[0]) ** 2).sum(axis=1).mean(axis=1)
        held_out = np.arange(60) % 5 == 4
        np.testing.assert_allclose(reported, (error[~held_out].mean(), error[held_out].mean()), rtol=1e-3)


def test_products_with_and_without_bias() -> None:
    """Two axes: MatMul and Add are a Gemm, whose bias is tuned. More: the Add stays, and its constant."""
    w = Weights(0)
    model = build(
        """(float[N,12] x) => (float[N,1,6] y) {
            [plus] m1 = MatMul(x, plus_w) t1 = Add(plus_b, m1) r1 = Relu(t1)
            [bare] t2 = MatMul(r1, bare_w) r2 = Relu(t2)
            [gemm] t3 = Gemm(r2, gemm_w) r3 = Relu(t3)
            u = Unsqueeze(r3, axis)
            [deep] m4 = MatMul(u, deep_w) y = Add(m4, deep_b)
        }""",
        plus_w=w.conv(16, 12).T, plus_b=w.bias(16), bare_w=w.conv(16, 16).T, gemm_w=w.conv(16, 16).T,
        deep_w=w.conv(6, 16).T, deep_b=w.bias(6), axis=np.array([1]),
    )  # fmt: skip
    data, unseen = samples(model, 320), samples(model, 240, seed=1)  # one row each
    tuned, report = quantized_and_report(model, data)
    plain, _ = quantized_and_report(model, data, tune=False)
    assert [(layer.name, layer.op_type) for layer in report.layers] == [
        ("plus", "Gemm"), ("bare", "MatMul"), ("gemm", "Gemm"), ("deep", "MatMul"),
    ]  # fmt: skip
    assert not report.skipped
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)
    before, after = ({t.name: t for t in m.graph.initializer} for m in (plain, tuned))
    changed = {name for name in before if before[name] != after[name]}
    assert sum(name.startswith("plus_b") for name in changed) == 1
    assert not any(name.startswith("deep_b") for name in changed)


@pytest.mark.parametrize(
    ("text", "weight", "reason"),
    [
        ("(float[N,2,5,8] x) => (float[N,2,5,8] y) {{ {} [layer] y = MatMul(h, w) }}", (2, 8, 8),
         "its weight is a stack of matrices"),
        ("(float[N,2,8,5] x) => (float[N,2,8,5] y) {{ {} [layer] y = MatMul(w, h) }}", (2, 8, 8),
         "its weight is a stack of matrices"),
        ("(float[8,8] x) => (float[8,8] y) {{ {} [layer] y = Gemm<transB=1>(w, h) }}", (8, 8),
         "its weight is the first input of Gemm: only that of MatMul is tuned there"),
        ("(float[N,5,8] x) => (float[N,5] y) {{ {} [layer] y = MatMul(h, w) }}", (8,),
         "this kind of layer is not tuned yet"),
        ("(float[N,8,8] x) => (float[N,8,8] y) {{ {} u = Unsqueeze(w, zero) [layer] y = MatMul(h, x) }}", (8, 8),
         "its weight is computed by the model, not constant"),
    ],
)  # fmt: skip
def test_what_is_not_tuned_has_its_reason(text: str, weight: tuple[int, ...], reason: str) -> None:
    """Behind a layer that is: MatMul by a square weight."""
    w = Weights(0)
    constants = {"w": w.conv(*weight) if len(weight) > 1 else w.bias(8), "zero": np.array([0])}
    if "zero" not in text:
        del constants["zero"]
    first = "[first] h = MatMul(first_w, x)" if "MatMul(w, h)" in text else "[first] h = MatMul(x, first_w)"
    model = build(text.format(first), first_w=w.conv(8, 8), **constants)
    data = {"x": np.random.default_rng(0).standard_normal((40, *samples(model, 1)["x"].shape[1:])).astype("f")}
    if "float[8,8]" in text:
        data = {"x": np.random.default_rng(0).standard_normal((80, 8)).astype("f")}
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()]))
    quantizer.quantize_model(model, None, Reader(data, batch=8 if "float[8,8]" in text else 1))
    assert [layer.name for layer in quantizer.report.layers] == ["first"]
    assert {layer.node: layer.reason for layer in quantizer.report.skipped} == {"layer": reason}
