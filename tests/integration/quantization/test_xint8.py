"""XInt8Spec for activations and weights: powers of two, int8 biases, activations fused, and both algorithms on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from small_models import MODELS, Reader, initializers, mean_squared_error, run, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    ScaleType,
    UInt8Spec,
    XInt8Spec,
)
from quark.onnx.plan.build import build_plan
from quark.onnx.preparation.prepare import prepare

LAYER = QLayerConfig(XInt8Spec(), weight=XInt8Spec())
ALGORITHMS = {
    "adaround": AdaRoundConfig(num_iterations=100),
    "adaquant": AdaQuantConfig(num_iterations=100, learning_rate=1e-3),
}


def quantize(
    model: onnx.ModelProto, layer: QLayerConfig = LAYER, *algorithms: Any, **options: Any
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(layer, algo_config=algorithms, **options))
    return quantizer.quantize_model(model, None, Reader(samples(model, 120))), quantizer.report


def is_power_of_two(scale: np.ndarray) -> bool:
    return bool((np.frexp(scale)[0] == 0.5).all())


@pytest.mark.parametrize("name", MODELS)
def test_node_by_node(name: str) -> None:
    model = MODELS[name]()
    result, _ = quantize(model)
    onnx.checker.check_model(result, full_check=True)
    constants, makers = initializers(result), {node.output[0]: node for node in result.graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in result.graph.node:
        assert node.domain == ""
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    quantizers = [node for node in result.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizers
    for node in quantizers:
        assert is_power_of_two(constants[node.input[1]])
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
        if node.op_type == "QuantizeLinear":
            (behind,) = readers[node.output[0]]
            assert behind.op_type == "DequantizeLinear"
            assert behind.input[1:] == node.input[1:]
    for node in result.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            for tensor in node.input:
                assert makers[tensor].op_type == "DequantizeLinear"
        if node.op_type in ("Relu", "Clip"):
            before = makers[node.input[0]]
            assert before.op_type in ("Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul") or (
                before.op_type == "DequantizeLinear"
                and makers[makers[before.input[0]].input[0]].op_type in ("InstanceNormalization", "LayerNormalization")
            )
            assert readers[node.output[0]][0].op_type == "QuantizeLinear"


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_the_same_optimised(name: str) -> None:
    model = MODELS[name]()
    result, _ = quantize(model)
    arrays = samples(model, 16, seed=3)
    plain, optimised = run(result, arrays), run(result, arrays, optimise=True)
    for a, b in zip(plain, optimised, strict=True):
        assert np.mean((a - b) ** 2) < 0.002 * np.var(a)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", MODELS)
def test_finetuning_brings_it_closer_and_changes_integers_only(name: str, algorithm: str) -> None:
    model = MODELS[name]()
    plain, _ = quantize(model)
    tuned, report = quantize(model, LAYER, ALGORITHMS[algorithm])
    assert [node.SerializeToString() for node in tuned.graph.node] == [n.SerializeToString() for n in plain.graph.node]
    before, after = initializers(plain), initializers(tuned)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("_quantized") and before[name].dtype == np.int8 for name in changed)
    assert any(layer.accepted for layer in report.layers)
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


def test_layers_are_trained_through_the_activation_behind_them() -> None:
    model = MODELS["separable"]()
    plan = build_plan(prepare(model), quantize(model)[0], ("Conv", "Gemm"))
    stages = {layer.node: layer.stage for layer in plan.layers}
    assert stages.pop("classes") is None
    assert set(stages) == {"stem", "dw1", "pw1", "dw2", "pw2"}
    for stage in stages.values():
        assert stage is not None
        assert (stage.activation.kind, stage.folded) == ("clip", False)


def test_memory_levels_and_threads_give_the_same_model() -> None:
    model, found = MODELS["separable"](), set()
    for level, threads in ((0, 1), (1, 3), (2, 2)):
        config = AdaRoundConfig(num_iterations=30, mem_opt_level=level)
        found.add(quantize(model, LAYER, config, NumThreads=threads)[0].SerializeToString(deterministic=True))
    assert len(found) == 1


def bias_types(model: onnx.ModelProto) -> set[str]:
    constants, makers = initializers(model), {node.output[0]: node for node in model.graph.node}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    return {constants[makers[node.input[2]].input[0]].dtype.name for node in layers}


@pytest.mark.parametrize(
    ("layer", "by_default"),
    [
        (LAYER, "int8"),
        (QLayerConfig(UInt8Spec(scale_type=ScaleType.PowerOf2), weight=XInt8Spec()), "int8"),
        (QLayerConfig(UInt8Spec(), weight=XInt8Spec()), "int32"),
        (QLayerConfig(XInt8Spec(), weight=XInt8Spec(scale_type=ScaleType.Int16)), "int32"),
    ],
    ids=["XInt8", "uint8", "float activations", "int16 weights"],
)
def test_biases_are_int8_where_all_scales_are_powers_of_two(layer: QLayerConfig, by_default: str) -> None:
    model = MODELS["separable"]()
    assert bias_types(quantize(model, layer)[0]) == {by_default}
    assert bias_types(quantize(model, layer, Int32Bias=True)[0]) == {"int32"}
    assert bias_types(quantize(model, layer, Int32Bias=False)[0]) == {"int8"}


def test_single_layers_may_have_it() -> None:
    model = MODELS["separable"]()
    usual = QLayerConfig(UInt8Spec(calibration_method=CalibMethod.MinMax), weight=Int8Spec())
    own = QLayerConfig(input_tensors=XInt8Spec(), weight=XInt8Spec(calibration_method=CalibMethod.MinMSE))
    plain, _ = quantize(model, usual, specific_layer_config={own: ["pw1"]})
    tuned, report = quantize(model, usual, ALGORITHMS["adaround"], specific_layer_config={own: ["pw1"]})
    constants, makers = initializers(plain), {node.output[0]: node for node in plain.graph.node}
    for node in plain.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            x, w, b = (makers[name] for name in node.input)
            assert constants[x.input[2]].dtype == (np.int8 if node.name == "pw1" else np.uint8)
            assert constants[b.input[0]].dtype == (np.int8 if node.name == "pw1" else np.int32)
            assert is_power_of_two(constants[x.input[1]]) == (node.name == "pw1")
            assert is_power_of_two(constants[w.input[1]]) == (node.name == "pw1")
    activations = {node.name for node in plain.graph.node if node.op_type in ("Relu", "Clip")}
    assert activations == {"dw1_clip"}  # its output alone is symmetric
    assert makers[next(n for n in plain.graph.node if n.name == "dw1_clip").input[0]].op_type == "Conv"
    assert any(layer.accepted for layer in report.layers)
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


@pytest.mark.parametrize("kind", ["Relu", "Clip"])
def test_the_place_of_qdq_can_be_asked_for(kind: str) -> None:
    model = MODELS["separable"]()

    def read_directly(layer: QLayerConfig, **options: bool) -> set[str]:
        result, _ = quantize(model, layer, **options)
        makers = {node.output[0]: node.op_type for node in result.graph.node}
        activations = [node for node in result.graph.node if node.op_type in ("Relu", "Clip")]
        assert len(activations) == 5
        return {node.op_type for node in activations if makers[node.input[0]] == "Conv"}

    symmetric, option = QLayerConfig(Int8Spec(), weight=Int8Spec()), f"RemoveQDQConv{kind}"
    assert read_directly(symmetric) == set()
    assert read_directly(symmetric, **{option: True}) == {kind}
    assert read_directly(LAYER) == {"Relu", "Clip"}
    assert read_directly(LAYER, **{option: False}) == {"Relu", "Clip"} - {kind}


@pytest.mark.parametrize("method", [CalibMethod.MinMax, CalibMethod.MinMSE, CalibMethod.Percentile])
@pytest.mark.parametrize("granularity", [QuantGranularity.Tensor, QuantGranularity.Channel])
def test_named_methods_of_weights(method: CalibMethod, granularity: QuantGranularity) -> None:
    model = MODELS["residual"]()
    weight = XInt8Spec(calibration_method=method, quant_granularity=granularity)
    plain, _ = quantize(model, QLayerConfig(XInt8Spec(), weight=weight))
    tuned, _ = quantize(model, QLayerConfig(XInt8Spec(), weight=weight), ALGORITHMS["adaround"])
    constants = initializers(plain)
    assert all(is_power_of_two(value) for name, value in constants.items() if name.endswith("_scale"))
    unseen = samples(model, 64, seed=9)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen) < 0.5
