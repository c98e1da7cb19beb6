"""The scale and bias of normalizations, tuned: in models that ModelQuantizer made, and in hand-made Q/DQ models."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import onnx
import pytest
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from reference.inner_tensors import inner_tensors
from reference.norm_models import STEP, NormModels, draw_models, norm_models
from small_models import (
    Reader,
    by_set,
    initializers,
    judged,
    mean_squared_error,
    run,
    samples,
    style_cnn,
    transformer_block,
)

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    finetune,
)
from quark.onnx.operators.table import NORMALIZATIONS
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.report.report import Report

MODELS = {"transformer": transformer_block, "style": style_cnn}
CONFIGS = {
    "least squares": AdaRoundConfig(),
    "least squares, free": AdaQuantConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=200, update_bias=True),
    "gradient, free": AdaQuantConfig(
        solver="gradient", num_iterations=200, learning_rate=0.01, batch_size=32, update_bias=True
    ),
}
EVERY_KIND = pytest.mark.parametrize("op_type", NORMALIZATIONS)
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
INT8 = Int8Spec()
SAMPLES = 40
HELD_OUT = np.arange(SAMPLES) % 5 == 4


def quantize(
    model: onnx.ModelProto, config: AdaRoundConfig | AdaQuantConfig | None, *, count: int = 120,
    weight: Int4Spec | Int8Spec = INT8, **extra: Any,
) -> tuple[onnx.ModelProto, Report]:  # fmt: skip
    layer = QLayerConfig(UInt8Spec(), weight=weight)
    quantizer = ModelQuantizer(QConfig(layer, algo_config=[config] if config else None, extra_options=extra))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    return quantized, quantizer.report


def norms_of(model: onnx.ModelProto) -> list[str]:
    return [node.name for node in model.graph.node if node.op_type in NORMALIZATIONS]


# ---- models that ModelQuantizer made --------------------------------------------------------------


@EVERY_CONFIG
@pytest.mark.parametrize("name", MODELS)
def test_a_model_gets_closer_to_its_float_model(name: str, config: AdaRoundConfig) -> None:
    model = MODELS[name]()
    plain, _ = quantize(model, None)
    tuned, report = quantize(model, config)
    layers = [layer for layer in report.layers if layer.op_type in NORMALIZATIONS]
    assert [layer.name for layer in layers] == norms_of(model)
    for layer in layers:
        assert layer.inputs == 1
        before, after = judged(layer)
        assert after <= before < layer.power[0]
        assert layer.accepted == (after < before)
    assert any(layer.accepted for layer in layers)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


@EVERY_CONFIG
@pytest.mark.parametrize("name", MODELS)
def test_only_the_integers_of_scale_and_bias_change(name: str, config: AdaRoundConfig) -> None:
    """Where only normalizations are tuned."""
    model = MODELS[name]()
    weight = Int4Spec()  # with 8 bits, the rounding of scales and biases is less than a hundredth of the error
    plain, _ = quantize(model, None, weight=weight)
    options = {key: value for key, value in vars(config).items() if key != "target_op_type"}
    tuned, report = quantize(model, type(config)(**options, target_op_type=list(NORMALIZATIONS)), weight=weight)
    assert [layer.name for layer in report.layers] == norms_of(model)
    assert report.skipped == ()
    before, after = initializers(plain), initializers(tuned)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert changed <= {f"{norm}_{part}_quantized" for norm in norms_of(model) for part in "wb"}
    assert {name: (v.dtype, v.shape) for name, v in after.items()} == {n: (v.dtype, v.shape) for n, v in before.items()}
    assert list(plain.graph.node) == list(tuned.graph.node)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


@pytest.mark.parametrize("solver", ["least_squares", "gradient"])
@pytest.mark.parametrize("name", MODELS)
def test_memory_levels_and_threads_give_the_same_model(name: str, solver: str) -> None:
    model, found = MODELS[name](), set()
    for level, threads in ((1, 1), (0, 1), (2, 1), (1, 2), (2, 3)):
        config = AdaRoundConfig(solver=solver, num_iterations=30, batch_size=3, mem_opt_level=level)
        found.add(quantize(model, config, count=40, NumThreads=threads)[0].SerializeToString(deterministic=True))
    assert len(found) == 1


def test_all_layers_side_by_side() -> None:
    """With `parallel` a normalization is tuned on what the model fed it before: as if it were tuned alone."""
    model = style_cnn()
    _, alone = quantize(model, AdaRoundConfig(target_op_type=["InstanceNormalization"], parallel=True))
    _, together = quantize(model, AdaRoundConfig(parallel=True))
    first = next(layer for layer in together.layers if layer.name == "norm1")
    assert (first.before, first.after) == (alone.layers[0].before, alone.layers[0].after)


def test_the_scale_of_a_scale_is_that_of_its_range() -> None:
    """CalibMethod.MinOutputMSE chooses those of products and convolutions only; it leaves the others alone."""
    model, norms = transformer_block(), {f"{name}_w_scale" for name in norms_of(transformer_block())}

    def scales(method: CalibMethod) -> dict[str, np.ndarray]:
        spec = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=method))
        found = initializers(ModelQuantizer(QConfig(spec)).quantize_model(model, None, Reader(samples(model, 20))))
        return {name: values for name, values in found.items() if name in norms}

    searched = scales(CalibMethod.MinOutputMSE)
    assert len(searched) == 3
    assert searched == scales(CalibMethod.MinMax)
    for name in norms_of(model):
        gains = initializers(model)[f"{name}_w"]
        assert searched[f"{name}_w_scale"] == pytest.approx(np.abs(gains).max() / 127)


def test_one_scale_for_several_normalized_axes() -> None:
    """onnxruntime's quantizer fails on such a scale per channel; it gets one scale."""
    rng = np.random.default_rng(0)
    model = norm_models("LayerNormalization", op="LayerNormalization<axis = -2>", shape=(1, 4, 3, 6), opset=17,
        scale_q=rng.integers(5, 30, (3, 6)).astype(np.int8), bias_q=rng.integers(-30, 30, (3, 6)).astype(np.int32),
        off=tuple(STEP * rng.uniform(-0.5, 0.5, (3, 6)).astype(np.float32) for _ in range(2)),
    ).float_model  # fmt: skip
    spec = Int8Spec(quant_granularity=QuantGranularity.Channel)
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=spec), algo_config=[AdaRoundConfig()]))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, 40)))
    assert initializers(quantized)["scale_scale"].size == 1
    (layer,) = quantizer.report.layers
    assert (layer.name, layer.outputs, layer.rows) == ("layer", 18, (32 * 4, 8 * 4))
    assert layer.accepted


@pytest.mark.parametrize("op_type", ["BatchNormalization", "GroupNormalization"])
def test_kinds_that_are_quantized_on_request(op_type: str) -> None:
    model = norm_models(op_type).float_model
    _, report = quantize(model, AdaRoundConfig(), OpTypesToQuantize=[op_type])
    (layer,) = report.layers
    assert (layer.name, layer.op_type, layer.outputs) == ("layer", op_type, 6)
    assert layer.after[1] <= layer.before[1]


# ---- hand-made models of one normalization --------------------------------------------------------


def data_of(models: NormModels) -> dict[str, np.ndarray]:
    x = np.random.default_rng(3).standard_normal((SAMPLES, *models.shape[1:]))
    return {"x": (x * np.linspace(0.3, 1.2, x.shape[-1]) + 0.4).astype(np.float32)}


def tuned(models: NormModels, config: AdaRoundConfig | AdaQuantConfig) -> tuple[onnx.ModelProto, LayerReport]:
    model, report = finetune(models.float_model, models.quantized, None, Reader(data_of(models)), config)
    (layer,) = report.layers
    return model, layer


def errors(models: NormModels, quantized: onnx.ModelProto, *, solver: str, batch: int = SAMPLES) -> tuple[float, float]:
    """(fitted, held-out) mean squared differences of the outputs, summed over the elements of the scale."""
    items = [{"x": x} for x in np.split(data_of(models)["x"], SAMPLES // batch)]
    have, want = (
        np.concatenate([run(model, item)[0] for item in items]).astype(np.float64)
        for model in (quantized, models.float_model)
    )
    squares = models.scale_q.size * ((have - want) ** 2).reshape(SAMPLES, -1).mean(axis=1)
    return by_set(squares, solver)


def check(models: NormModels, tuned: onnx.ModelProto, layer: LayerReport, solver: str) -> None:
    """The report's errors are those of the models' outputs, and fall."""
    for reported, model in ((layer.before, models.quantized), (layer.after, tuned)):
        assert reported == pytest.approx(errors(models, model, solver=solver), rel=1e-3, nan_ok=True)
    before, after = judged(layer)
    assert after < before


@EVERY_KIND
@EVERY_CONFIG
@pytest.mark.parametrize("given", ["float", "8 bits"])
def test_a_foreign_model(op_type: str, config: AdaRoundConfig, given: str) -> None:
    """The report's errors are those of the models' outputs."""
    models = norm_models(op_type, given=given)
    model, layer = tuned(models, config)
    check(models, model, layer, config.solver)
    before, after = initializers(models.quantized), initializers(model)
    assert {name for name in before if not np.array_equal(before[name], after[name])} <= {"scale_q", "bias_q"}


@EVERY_KIND
@hypothesis.given(st.data())
@hypothesis.settings(max_examples=25, deadline=None)
def test_a_layer_with_any_attributes(op_type: str, data: st.DataObject) -> None:
    """What both solvers report is the error of the outputs; and those are onnx's, as far as it computes them."""
    models = replace(draw_models(data, op_type), off=(0.4 * STEP, 0.3 * STEP))
    hypothesis.assume(not re.search(rf"axis = (0|-{len(models.shape)}),", models.op))  # over samples
    want, have = (run(model, data_of(models))[0] for model in (models.float_model, models.quantized))
    if "GroupNormalization" not in models.op or models.opset == 21:
        (reference,) = ReferenceEvaluator(models.float_model).run(None, data_of(models))
        np.testing.assert_allclose(want, reference, rtol=1e-3, atol=1e-3)
    power = float(models.scale_q.size * (want.astype(np.float64) ** 2).mean())
    assert have.shape == want.shape
    for config in (AdaRoundConfig(), AdaRoundConfig(solver="gradient", num_iterations=3)):
        _, layer = tuned(models, config)
        before = errors(models, models.quantized, solver=config.solver)
        assert layer.before == pytest.approx(before, rel=1e-3, abs=1e-5 * power, nan_ok=True)


@pytest.mark.parametrize("config", [AdaRoundConfig(), AdaQuantConfig()], ids=["adaround", "adaquant"])
@EVERY_KIND
def test_least_squares_finds_what_a_search_of_all_integers_finds(op_type: str, config: AdaRoundConfig) -> None:
    """Two unknowns per element: every scale there is, each with its best bias, judged by the models' tensors."""
    models = norm_models(op_type, size=9)
    model, _ = tuned(models, config)
    tensors = inner_tensors(with_scale_1(models.quantized, models.scale_q.size), data_of(models), ["z"])
    xhat, y = (by_element(array, op_type) for array in (tensors["z"], run(models.float_model, data_of(models))[0]))
    found, free = initializers(model), isinstance(config, AdaQuantConfig)
    real = initializers(models.float_model)["scale"]
    for element in range(6):
        (x, x_held_out), (t, t_held_out) = (
            (a[element, ~HELD_OUT].ravel(), a[element, HELD_OUT].ravel()) for a in (xhat, y)
        )
        floor = int(np.floor(real[element] / STEP))
        scales = np.arange(-127, 128) if free else np.array([floor, floor + 1])
        biases = np.rint((t.mean() - STEP * scales * x.mean()) / STEP)
        best = int(np.argmin([((STEP * (s * x + b) - t) ** 2).mean() for s, b in zip(scales, biases, strict=True)]))
        of_search = ((STEP * (scales[best] * x_held_out + biases[best]) - t_held_out) ** 2).mean()
        have = STEP * (found["scale_q"][element] * x_held_out + found["bias_q"][element])
        assert ((have - t_held_out) ** 2).mean() <= 1.001 * of_search


def with_scale_1(quantized: onnx.ModelProto, elements: int) -> onnx.ModelProto:
    """The node's output is then what it normalizes."""
    model = onnx.ModelProto()
    model.CopyFrom(quantized)
    for tensor in model.graph.initializer:
        if tensor.name == "scale_q":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(elements, 16, np.int8), "scale_q"))
        if tensor.name == "bias_q":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(elements, np.int32), "bias_q"))
    assert STEP == 1 / 16
    return model


def by_element(array: np.ndarray, op_type: str) -> np.ndarray:
    """(elements, samples, positions)"""
    return np.moveaxis(array.astype(np.float64), -1 if op_type == "LayerNormalization" else 1, 0)


@EVERY_KIND
@pytest.mark.parametrize("solver", ["auto", "gradient"])
@pytest.mark.parametrize("activation", ["Relu(z)", "LeakyRelu(z)", "PRelu(z, slope)"])
def test_the_error_is_taken_behind_the_activation(op_type: str, solver: str, activation: str) -> None:
    models = norm_models(op_type, end=f"y = {activation}", constants=(("slope", np.float32(0.3)),))
    model, layer = tuned(models, AdaRoundConfig(solver=solver, num_iterations=100, update_bias=True))
    check(models, model, layer, solver)


@EVERY_KIND
@pytest.mark.parametrize("solver", ["auto", "gradient"])
def test_the_error_is_taken_behind_the_quantization_of_the_output(op_type: str, solver: str) -> None:
    """Which does Relu's work, as onnxruntime's quantizer has it."""
    models = norm_models(
        op_type, end="y = Relu(z)",
        quantized_end="q = QuantizeLinear(z, end_step, end_zero) y = DequantizeLinear(q, end_step, end_zero)",
        constants=(("end_step", np.float32(0.02)), ("end_zero", np.uint8(0))),
    )  # fmt: skip
    model, layer = tuned(models, AdaRoundConfig(solver=solver, num_iterations=100, update_bias=True, output_qdq=True))
    check(models, model, layer, solver)


@EVERY_KIND
@pytest.mark.parametrize("activation", ["Softmax(z)", "PRelu(z, slopes)"])
def test_an_activation_along_an_axis_is_not_looked_through(op_type: str, activation: str) -> None:
    slopes = np.linspace(0, 0.5, 6).reshape((6,) if op_type == "LayerNormalization" else (6, 1, 1))
    models, plain = norm_models(op_type, end=f"y = {activation}", constants=(("slopes", slopes),)), norm_models(op_type)
    _, layer = tuned(models, AdaRoundConfig(solver="gradient", num_iterations=1))
    assert layer.before == pytest.approx(errors(plain, plain.quantized, solver="gradient"), rel=1e-4, nan_ok=True)


@EVERY_KIND
def test_drop_ratio_mixes_what_is_normalized(op_type: str, caplog: pytest.LogCaptureFixture) -> None:
    """The loss of the first step, on all samples: with 0 that of the float graph's input."""
    near = tuple(
        STEP * np.random.default_rng(0).uniform(-0.4, 0.4, 6) for _ in range(2)
    )  # training starts as the model
    models = norm_models(op_type, off=near)
    for ratio in (0.0, 1.0):
        caplog.clear()
        with caplog.at_level("INFO", "quark.onnx"):
            tuned(models, AdaQuantConfig(
                solver="gradient", num_iterations=1, dynamic_batch=True, log_period=1, drop_ratio=ratio
            ))  # fmt: skip
        loss = float(re.search(r"step 1, loss (\S+)", caplog.text).group(1))
        start = replace(models, given="8 bits" if ratio else "float")
        assert loss == pytest.approx(errors(models, start.quantized, solver="gradient")[0], rel=1e-4)


def test_groups_that_share_a_scale() -> None:
    """GroupNormalization as of opset 18."""
    models = norm_models(
        "GroupNormalization", opset=18, scale_q=np.array([7, 20, 11], np.int8),
        bias_q=np.array([3, -8, 1], np.int32), off=(np.array([0.06, -0.04, 0.05]), np.array([0.05, -0.04, 0.02])),
    )  # fmt: skip
    model, layer = tuned(models, AdaRoundConfig())
    assert (layer.outputs, layer.rows) == (3, (32 * 50, 8 * 50))
    assert layer.after == pytest.approx(errors(models, model, solver="auto"), rel=1e-3)
    assert layer.accepted


def test_a_bias_that_stays_float_or_is_not_there() -> None:
    rng = np.random.default_rng(0)
    models = norm_models("LayerNormalization", bias_q=None, off=(STEP * rng.uniform(-0.5, 0.5, 6), 0.0))
    for quantized in (models.quantized, norm_models("LayerNormalization").quantized):
        float_model = models.float_model
        if quantized != models.quantized:
            float_model = norm_models("LayerNormalization").float_model
            node = next(node for node in quantized.graph.node if "bias" in node.output)
            quantized.graph.node.remove(node)
            bias = initializers(float_model)["bias"]
            quantized.graph.initializer.append(onnx.numpy_helper.from_array(bias, "bias"))
        model, report = finetune(float_model, quantized, None, Reader(data_of(models)), AdaQuantConfig())
        before, after = initializers(quantized), initializers(model)
        assert report.layers[0].after[1] <= report.layers[0].before[1]
        assert {name for name in before if not np.array_equal(before[name], after[name])} <= {"scale_q"}


def test_a_scale_along_the_samples_is_a_reason() -> None:
    models = NormModels(op="LayerNormalization", samples=4, shape=(4,), scale_q=np.array([1, 3, 5, 7], np.int8))
    x = {"x": np.random.default_rng(0).standard_normal(40).astype(np.float32)}
    _, report = finetune(models.float_model, models.quantized, None, Reader(x, batch=4), AdaRoundConfig())
    assert report.layers[0].reason == (
        "its data does not fit: its scale differs along the first axis, which counts samples "
        "(input (4,), float output (4,))"
    )


def test_statistics_over_the_samples() -> None:
    """LayerNormalization over all axes: a batch is then normalized as a whole, in the model and in the plan."""
    models = NormModels(
        op="LayerNormalization<axis = 0>", samples=4, shape=(4, 6), scale_q=np.arange(5, 11, dtype=np.int8),
        bias_q=np.arange(6, dtype=np.int32), off=(np.float32(0.05), np.float32(-0.05)),
    )  # fmt: skip
    _, report = finetune(models.float_model, models.quantized, None, Reader(data_of(models), batch=4), AdaRoundConfig())
    (layer,) = report.layers
    assert layer.before == pytest.approx(errors(models, models.quantized, solver="auto", batch=4), rel=1e-3)
    assert layer.accepted
