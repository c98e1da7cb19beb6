"""Specs of single layers and op types, through ModelQuantizer, read off the Q/DQ model node by node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_tensors import QuantizedModel
from reference.inner_tensors import inner_tensors
from small_models import MODELS, Reader, build, mean_squared_error, residual_cnn, run, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    CalibMethod,
    ConfigError,
    Int8Spec,
    Int32Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    UInt8Spec,
)

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
SIGNED = Int8Spec()
CHANNEL = Int8Spec(quant_granularity=QuantGranularity.Channel)


def quantized(model: onnx.ModelProto, config: QConfig, *, count: int = 24) -> onnx.ModelProto:
    """The Q/DQ model, after a look at whether it runs, with and without optimisation, near the float model.

    Not very near: `small_models` is made so that minimum and maximum of a weight leave much of it to finetuning.
    """
    result = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, count), batch=5))
    onnx.checker.check_model(result, full_check=True)
    data = samples(model, 16, seed=1)
    assert mean_squared_error(model, result, data) < 0.5
    plain, optimised = run(result, data)[0], run(result, data, optimise=True)[0]
    assert np.abs(plain - optimised).max() < 0.03 * np.ptp(plain)
    return result


def layers(model: onnx.ModelProto, config: QConfig) -> QuantizedModel:
    return QuantizedModel(quantized(model, config))


def test_without_own_specs_nothing_differs() -> None:
    model = separable_cnn()
    plain = quantized(model, QConfig(LAYER))
    same = QConfig(LAYER, {LAYER: ["pw1", "^dw.*"]}, {LAYER: ["Conv", "Relu"]})
    assert quantized(model, same).graph == plain.graph


def test_a_weight_per_channel_in_one_layer() -> None:
    model = separable_cnn()
    found = layers(model, QConfig(LAYER, {QLayerConfig(weight=CHANNEL): ["pw1", "classes"]}))
    for node, channels in (("pw1", 16), ("classes", 10)):
        weight = found.input(node, 1)
        assert (weight.kind, weight.scales, weight.axis, weight.symmetric) == ("int8", channels, 0, True)
        bias = found.input(node, 2)
        assert (bias.kind, bias.scales, bias.zero) == ("int32", channels, (0,))
        np.testing.assert_array_equal(found.scale(node, 2), found.scale(node, 0) * found.scale(node, 1))
    for node in ("stem", "dw1", "dw2", "pw2"):
        assert found.input(node, 1).scales == found.input(node, 2).scales == 1


def test_one_scale_in_one_layer_where_all_others_have_one_per_channel() -> None:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=CHANNEL), {QLayerConfig(weight=Int8Spec()): ["dw1"]})
    found = layers(separable_cnn(), config)
    assert {node: found.input(node, 1).scales for node in ("stem", "dw1", "pw1")} == {"stem": 8, "dw1": 1, "pw1": 16}


@pytest.mark.parametrize("granularity", list(QuantGranularity)[:2])
@pytest.mark.parametrize("method", [None, CalibMethod.MinMax])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", [Int8Spec, UInt8Spec])
def test_every_kind_of_weight_beside_others(
    kind: type[Int8Spec | UInt8Spec], symmetric: bool, method: CalibMethod | None, granularity: QuantGranularity
) -> None:
    spec = kind(symmetric, calibration_method=method, quant_granularity=granularity)
    found = layers(MODELS["mlp"](), QConfig(LAYER, {QLayerConfig(weight=spec): ["second"]}))
    weight = found.input("second", 1)
    assert weight.kind == kind.__name__.removesuffix("Spec").lower()
    assert (weight.scales, weight.axis) == ((16, 1) if granularity is QuantGranularity.Channel else (1, None))
    assert weight.symmetric == symmetric
    if symmetric and kind is Int8Spec:
        assert found.integers("second").min() == -127
    others = (found.input("first", 1), found.input("third", 1))
    assert [(w.kind, w.scales, w.symmetric) for w in others] == [("int8", 1, True)] * 2


@pytest.mark.parametrize("granularity", list(QuantGranularity)[:2])
@pytest.mark.parametrize("kind", [Int8Spec, UInt8Spec])
def test_an_asymmetric_weight_by_minimum_and_maximum(
    kind: type[Int8Spec | UInt8Spec], granularity: QuantGranularity
) -> None:
    """Everywhere or in one layer: the integers reach both ends of the type."""
    spec = kind(symmetric=False, calibration_method=CalibMethod.MinMax, quant_granularity=granularity)
    model = MODELS["mlp"]()
    everywhere = layers(model, QConfig(QLayerConfig(UInt8Spec(), weight=spec)))
    single = layers(model, QConfig(LAYER, {QLayerConfig(weight=spec): ["second"]}))
    for found in (everywhere, single):
        integers = found.integers("second")
        channel = 1 if granularity is QuantGranularity.Channel else None
        info = np.iinfo(integers.dtype)
        assert (integers.min(axis=0 if channel else None) <= info.min + 1).all()
        assert (integers.max(axis=0 if channel else None) >= info.max - 1).all()
    np.testing.assert_array_equal(everywhere.integers("second"), single.integers("second"))


def test_the_calibration_of_a_weight_is_that_of_its_layer() -> None:
    model = separable_cnn()
    minmax = QLayerConfig(weight=Int8Spec(calibration_method=CalibMethod.MinMax))
    found = layers(model, QConfig(LAYER, {minmax: ["pw1"]}))
    searched = layers(model, QConfig(LAYER))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    assert found.scale("pw1", 1) == np.float32(np.abs(weights["pw1_w"]).max() / np.float64(127))
    assert searched.scale("pw1", 1) != found.scale("pw1", 1)
    for node in ("stem", "dw1", "dw2", "pw2", "classes"):
        assert searched.scale(node, 1) == found.scale(node, 1)


def test_the_calibration_of_an_activation_is_that_of_its_layer() -> None:
    model = residual_cnn()
    data = samples(model, 24)
    minmax = QLayerConfig(input_tensors=UInt8Spec(calibration_method=CalibMethod.MinMax))
    config = QConfig(LAYER, {minmax: ["conv2"]}, extra_options={"Percentile": 95.0})
    found = QuantizedModel(ModelQuantizer(config).quantize_model(model, None, Reader(data)))
    inner = inner_tensors(model, data)
    assert found.scale("conv2") == pytest.approx(inner["r1"].max() / 255, rel=1e-5)
    assert found.scale("conv3") < 0.8 * inner["r2"].max() / 255


def test_inputs_of_another_type() -> None:
    found = layers(residual_cnn(), QConfig(LAYER, {QLayerConfig(input_tensors=SIGNED): ["conv2"]}))
    own = found.input("conv2")
    assert (own.kind, own.symmetric, own.pair) == ("int8", True, True)
    assert found.input("add", 1) == own, "one tensor, one quantization"
    assert "relu1" in found.nodes, "what a symmetric quantizer lets through, the Relu stops"
    assert "relu2" not in found.nodes
    assert {found.input(node).kind for node in ("stem", "conv3", "product")} == {"uint8"}
    bias = found.input("conv2", 2)
    assert (bias.kind, bias.scales) == ("int32", 1)
    assert found.scale("conv2", 2) == found.scale("conv2", 0) * found.scale("conv2", 1)


def test_an_asymmetric_signed_input_takes_the_relu_away_too() -> None:
    asymmetric = QLayerConfig(input_tensors=Int8Spec(symmetric=False))
    found = layers(residual_cnn(), QConfig(LAYER, {asymmetric: ["conv2"]}))
    assert (found.input("conv2").kind, found.input("conv2").zero) == ("int8", (-128,))
    assert "relu1" not in found.nodes


def test_outputs_of_another_type_keep_the_relu_behind_them() -> None:
    model = residual_cnn()
    for spec in (SIGNED, Int8Spec(symmetric=False)):
        found = layers(model, QConfig(LAYER, {QLayerConfig(output_tensors=spec): ["conv2"]}))
        assert found.output("conv2").kind == "int8"
        assert found.input("relu2").kind == "int8"
        assert found.output("relu2").kind == "uint8"


def test_a_relu_goes_where_both_sides_have_one_type() -> None:
    spec = Int8Spec(symmetric=False)
    config = QConfig(LAYER, {QLayerConfig(output_tensors=spec): ["conv2"], QLayerConfig(input_tensors=spec): ["conv3"]})
    found = layers(residual_cnn(), config)
    assert "relu2" not in found.nodes
    assert found.output("conv2").kind == found.input("conv3").kind == "int8"


def test_the_type_of_an_output_of_the_model() -> None:
    found = layers(separable_cnn(), QConfig(LAYER, {QLayerConfig(output_tensors=SIGNED): ["classes"]}))
    assert (found.output("classes").kind, found.output("classes").symmetric) == ("int8", True)


VIEWS = """(float[N,4,6,6] x) => (float[N,4,3,3] y) {
    [first] a = Conv(x, w)
    [turn] b = Transpose<perm=[0,1,3,2]>(a)
    [pool] c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
    [second] y = Conv(c, w2)
}"""


def views() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    return build(VIEWS, w=random.standard_normal((4, 4, 1, 1)), w2=random.standard_normal((4, 4, 1, 1)))


def test_views_have_the_quantization_of_what_they_show() -> None:
    found = layers(views(), QConfig(LAYER, {QLayerConfig(output_tensors=SIGNED): ["first"]}))
    kinds = [found.output("first"), found.output("turn"), found.output("pool"), found.input("second")]
    assert {q.kind for q in kinds} == {"int8"}
    assert found.scale("turn") == found.scale("pool") == found.scale("second")


def test_a_view_with_a_spec_of_its_own_has_it() -> None:
    found = layers(views(), QConfig(LAYER, {QLayerConfig(input_tensors=SIGNED): ["second"]}))
    assert [found.output(node).kind for node in ("first", "turn", "pool")] == ["uint8", "uint8", "int8"]
    assert found.scale("turn") == found.scale("pool") != found.scale("second")


BIASES = [
    (Int8Spec(), "int8", 1),
    (UInt8Spec(), "uint8", 1),
    (Int8Spec(quant_granularity=QuantGranularity.Channel), "int8", 8),
]


@pytest.mark.parametrize(("spec", "kind", "scales"), BIASES)
def test_biases_with_a_scale_of_their_own(spec: Int8Spec, kind: str, scales: int) -> None:
    model = residual_cnn()
    config = QConfig(
        QLayerConfig(UInt8Spec(), weight=Int8Spec(), bias=spec), {QLayerConfig(bias=Int32Spec()): ["conv2"]}
    )
    found = layers(model, config)
    for node in ("stem", "conv3"):
        bias = found.input(node, 2)
        assert (bias.kind, bias.scales, bias.pair) == (kind, scales, False)
    assert found.input("conv2", 2).kind == "int32"
    values = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}["stem_b"]
    np.testing.assert_allclose(found.scale("stem", 2).max() * 127, np.abs(values).max(), rtol=0.6)


def test_op_types_then_nodes_on_top() -> None:
    """The order that is documented: type, then node; entry after entry; inputs before outputs."""
    config = QConfig(
        LAYER,
        specific_layer_config={
            QLayerConfig(weight=UInt8Spec()): ["dw1", "dw2"],
            QLayerConfig(weight=Int8Spec(symmetric=False)): ["dw2"],
        },
        layer_type_config={QLayerConfig(input_tensors=SIGNED, weight=CHANNEL): ["Conv"]},
    )
    found = layers(separable_cnn(), config)
    assert {found.input(node).kind for node in ("stem", "dw1", "pw1", "dw2", "pw2")} == {"int8"}
    assert found.input("classes").kind == "uint8"
    weights = {node: found.input(node, 1) for node in ("stem", "dw1", "pw1", "dw2", "pw2", "classes")}
    assert {node: (w.kind, w.scales) for node, w in weights.items()} == {
        "stem": ("int8", 8),
        "dw1": ("uint8", 1),
        "pw1": ("int8", 16),
        "dw2": ("int8", 1),
        "pw2": ("int8", 16),
        "classes": ("int8", 1),
    }
    assert not weights["dw2"].symmetric


def test_the_last_that_writes_a_tensor_decides() -> None:
    """As AMD Quark documents: what comes behind resets what came before."""
    model = residual_cnn()
    first = {QLayerConfig(output_tensors=SIGNED): ["relu1"], QLayerConfig(input_tensors=UInt8Spec()): ["conv2"]}
    assert layers(model, QConfig(LAYER, first)).input("conv2").kind == "uint8"
    second = dict(reversed(first.items()))
    assert layers(model, QConfig(LAYER, second)).input("conv2").kind == "int8"


def test_subgraphs_and_regular_expressions_choose_layers() -> None:
    config = QConfig(
        LAYER, {QLayerConfig(weight=CHANNEL): [(["conv2"], ["conv3"])], QLayerConfig(weight=UInt8Spec()): ["^prod"]}
    )
    found = layers(residual_cnn(folded=False), config)
    assert {node: found.input(node, 1).scales for node in ("stem", "conv2", "conv3")} == {
        "stem": 1,
        "conv2": 8,
        "conv3": 8,
    }
    assert found.input("product", 1).kind == "uint8"


@pytest.mark.parametrize(
    "config",
    [
        QConfig(LAYER, exclude=["conv2", "conv3", "relu2", "bn2"]),
        QConfig(LAYER, exclude=[(["conv2"], ["conv3"])]),
        QConfig(LAYER, exclude=[(["conv2"], ["bn3"])]),
        QConfig(LAYER, exclude=["^conv[23]$", "^relu2$"]),
    ],
)  # fmt: skip
def test_excluded_parts_stay_in_float(config: QConfig) -> None:
    """BatchNormalization bn2 and bn3, which the preparation folds, may be named as well as not."""
    if "bn2" in config.exclude:
        with pytest.raises(ConfigError, match="got 'bn2', expected a node that is left after the model was prepared"):
            quantized(residual_cnn(folded=False), config)
        return
    found = layers(residual_cnn(folded=False), config)
    for node in ("conv2", "conv3"):
        assert found.input(node, 1) is None
    assert found.nodes["relu2"].input[0] == found.nodes["conv2"].output[0]
    assert found.nodes["conv3"].input[0] == found.nodes["relu2"].output[0]
    assert found.input("stem", 1) is not None
    assert found.input("product", 1) is not None


def test_op_types_that_stay_in_float() -> None:
    found = layers(residual_cnn(), QConfig(LAYER, layer_type_config={None: ["Gemm", "Add"]}))
    assert found.input("product", 1) is None
    assert found.input("conv3", 1) is not None


SHARED = """(float[N,8] x) => (float[N,8] y) {
    [first] a = MatMul(x, w) [relu] b = Relu(a) [second] y = MatMul(b, w)
}"""


def test_a_shared_weight_has_one_spec() -> None:
    model = build(SHARED, w=np.random.default_rng(0).standard_normal((8, 8)) / 3)
    one = QConfig(LAYER, {QLayerConfig(weight=CHANNEL): ["first"]})
    with pytest.raises(ConfigError, match=r"nodes 'first' and 'second' share the weight 'w', for which .* two specs"):
        quantized(model, one)
    both = QConfig(LAYER, {QLayerConfig(weight=CHANNEL): ["first", "second"]})
    assert layers(model, both).input("second", 1).scales == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"specific_layer_config": {LAYER: ["pw3"]}}, "QConfig.specific_layer_config: got 'pw3', expected the name of"),
        ({"specific_layer_config": {LAYER: ["pw1"]}, "exclude": ["pw1"]}, "got 'pw1', expected a node that is quantiz"),
        ({"layer_type_config": {LAYER: ["Conv2"]}}, "layer_type_config: got 'Conv2', .* did you mean 'Conv'"),
        ({"layer_type_config": {LAYER: ["Sub"]}}, "got 'Sub', expected an operator that is quantized: see Extra"),
        ({"layer_type_config": {None: ["conv"]}}, "layer_type_config: got 'conv', expected the name of an operator;"),
        ({"exclude": [(["pw2"], ["pw1"])]}, "QConfig.exclude: .*'pw2' is a start, but it leads to no end"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_an_error(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        quantized(separable_cnn(), QConfig(LAYER, **arguments))


@pytest.mark.parametrize("algorithm", [AdaRoundConfig(), AdaQuantConfig(solver="gradient", num_iterations=40)])
def test_mixed_models_are_finetuned(algorithm: AlgoConfig) -> None:
    model = separable_cnn()
    mixed: dict[str, Any] = {
        "specific_layer_config": {
            QLayerConfig(input_tensors=SIGNED, weight=UInt8Spec(), bias=Int8Spec()): ["pw1"],
            QLayerConfig(weight=CHANNEL, output_tensors=Int8Spec(symmetric=False)): ["dw2"],
        },
        "layer_type_config": {QLayerConfig(weight=Int8Spec(symmetric=False)): ["Gemm"]},
    }
    plain = ModelQuantizer(QConfig(LAYER, **mixed)).quantize_model(model, None, Reader(samples(model, 40)))
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm], **mixed))
    tuned = quantizer.quantize_model(model, None, Reader(samples(model, 40)))
    assert not quantizer.report.skipped
    assert tuned.graph.node == plain.graph.node
    before, after = QuantizedModel(plain).constants, QuantizedModel(tuned).constants
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("_quantized") for name in changed)
    assert {before[name].dtype == after[name].dtype for name in before} == {True}
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


KINDS = st.sampled_from([Int8Spec, UInt8Spec])
METHODS = st.sampled_from([None, CalibMethod.MinMax])
activations = st.builds(
    lambda kind, symmetric, method: kind(symmetric, calibration_method=method), KINDS, st.booleans(), METHODS
)
weights = st.builds(
    lambda spec, granularity: replace(spec, quant_granularity=granularity),
    activations,
    st.sampled_from([QuantGranularity.Tensor, QuantGranularity.Channel]),
)
roles = {"input_tensors": activations, "weight": weights, "bias": activations, "output_tensors": activations}
own = st.builds(QLayerConfig, **{role: st.none() | specs for role, specs in roles.items()})


@given(st.sampled_from(["separable", "residual", "mlp"]), activations, weights, st.data())
@settings(max_examples=25, deadline=None)
def test_any_mixture_runs_and_is_near_the_float_model(
    name: str, activation: QTensorConfig, weight: QTensorConfig, data: st.DataObject
) -> None:
    model = MODELS[name]()
    nodes = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    chosen = data.draw(st.lists(st.sampled_from(nodes), unique=True, max_size=3), label="nodes")
    entries = {node: data.draw(own, label=node) for node in chosen}
    by_entry = {entry: [node for node in chosen if entries[node] == entry] for entry in entries.values()}
    found = layers(model, QConfig(QLayerConfig(activation, weight=weight), by_entry))
    for node in nodes:
        spec = entries.get(node, QLayerConfig()).weight or weight
        quantization = found.input(node, 1)
        assert quantization.kind == repr(spec.data_type).lower()
        assert quantization.symmetric or not spec.symmetric
        if spec.quant_granularity is QuantGranularity.Tensor:
            assert quantization.scales == 1
