"""Layers that share a weight are tuned together, on the inputs of all; or left together, with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from foreign import copy_of, statically_quantized
from small_models import Arrays, Reader, Weights, build, initializers, run, samples, scaled

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int4Spec,
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

SPEC = Int8Spec()


def quantized_and_report(
    model: onnx.ModelProto, data: Arrays, *algorithms: AdaRoundConfig | AdaQuantConfig,
    weight: Int8Spec | Int4Spec = SPEC, **options: object,
) -> tuple[onnx.ModelProto, Report]:  # fmt: skip
    config = QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=algorithms, extra_options=options)
    quantizer = ModelQuantizer(config)
    return quantizer.quantize_model(model, None, Reader(data)), quantizer.report


def error(float_model: onnx.ModelProto, model: onnx.ModelProto, data: Arrays) -> float:
    pairs = zip(run(float_model, data), run(model, data), strict=True)
    return float(sum(((a.astype(np.float64) - b) ** 2).mean() for a, b in pairs))


def pyramid() -> onnx.ModelProto:
    """A detector's head on three scales: one weight; biases, strides and pads of each scale's own."""
    w = Weights(5)
    gains = w.gains(8)
    head_w = scaled(w.conv(8, 6, 3, 3), gains)
    return build(
        """(float[N,6,9,9] x) => (float[N,4,9,9] y, float[N,8,5,5] z, float[N,8,7,7] u) {
            [stem] s = Conv<pads=[1,1,1,1]>(x, stem_w, stem_b)
            [relu] r = Relu(s)
            [large] a = Conv<pads=[1,1,1,1]>(r, head_w, large_b)
            [prelu] p = PRelu(a, slopes)
            [behind] y = Conv(p, behind_w)
            [pool] q = MaxPool<kernel_shape=[1,1]>(r)
            [half] z = Conv<pads=[1,1,1,1], strides=[2,2]>(q, head_w, half_b)
            [negative] n = Neg(r)
            [bare] u = Conv(n, head_w)
        }""",
        stem_w=w.conv(6, 6, 3, 3), stem_b=w.bias(6), head_w=head_w, large_b=w.bias(8) * gains,
        half_b=w.bias(8) * gains, behind_w=w.conv(4, 8, 1, 1, gains=gains), slopes=np.full((8, 1, 1), 0.3),
    )  # fmt: skip


def recurrent() -> onnx.ModelProto:
    """One step three times, with one weight and bias, on channels of very different ranges: x (N, 12) to y (N, 4)."""
    w = Weights(5)
    gains = w.gains(12)
    step = scaled(w.conv(12, 12, gains=gains), gains).T
    return build(
        """(float[N,12] x) => (float[N,4] y) {
            [start] t0 = Gemm(x, start_w) r0 = Relu(t0)
            [one] t1 = Gemm(r0, w, b) r1 = Relu(t1)
            [two] t2 = Gemm(r1, w, b) r2 = Relu(t2)
            [between] t3 = Gemm(r2, v, b) r3 = Relu(t3)
            [three] t4 = Gemm(r3, w, b) r4 = Relu(t4)
            [end] y = Gemm(r4, end_w)
        }""",
        start_w=scaled(w.conv(12, 12), gains).T, w=2 * step, b=np.abs(w.bias(12)) * gains,
        v=2 * scaled(w.conv(12, 12, gains=gains), gains).T, end_w=w.conv(4, 12, gains=gains).T,
    )  # fmt: skip


HEADS = ["large", "half", "bare"]
STEPS = ["one", "two", "three"]


@pytest.mark.parametrize("algorithm", [AdaRoundConfig(), AdaQuantConfig()], ids=["adaround", "adaquant"])
@pytest.mark.parametrize("granularity", [QuantGranularity.Tensor, QuantGranularity.Channel], ids=lambda g: g.name)
@pytest.mark.parametrize(("model", "shared"), [(pyramid(), HEADS), (recurrent(), STEPS)], ids=["pyramid", "recurrent"])
def test_layers_that_share_a_weight(
    model: onnx.ModelProto, shared: list[str], granularity: QuantGranularity, algorithm: AdaRoundConfig
) -> None:
    weight = Int4Spec(quant_granularity=granularity)  # whose rounding, not the activations', is most of the error
    data, unseen = samples(model, 160), samples(model, 240, seed=1)
    plain, _ = quantized_and_report(model, data, weight=weight)
    tuned, report = quantized_and_report(model, data, algorithm, weight=weight)
    assert not report.skipped
    assert {layer.name for layer in report.layers} == {
        node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm")
    }
    assert error(model, tuned, unseen) < error(model, plain, unseen)
    layers = {layer.name: layer for layer in report.layers}
    first = layers[shared[0]]
    assert first.accepted
    for name in shared:
        others = [other for other in shared if other != name]
        assert layers[name].candidate.endswith("".join(f", with {other}" for other in others))
        assert (layers[name].before, layers[name].after) == (first.before, first.after)
    changed = {name for name, value in initializers(plain).items() if (value != initializers(tuned)[name]).any()}
    biases = {name for node in tuned.graph.node if node.name in shared for name in node.input[2:]}
    assert not changed & biases, "they stay as they are"


@pytest.mark.parametrize("method", [CalibMethod.MinMax, CalibMethod.MinOutputMSE], ids=lambda m: m.name)
def test_shared_scales_of_blocks(method: CalibMethod) -> None:
    model, weight = recurrent(), Int4Spec(quant_granularity=QuantGranularity.Group, calibration_method=method)
    data, unseen = samples(model, 160), samples(model, 240, seed=1)
    plain, _ = quantized_and_report(model, data, weight=weight, BlockSize=4)
    tuned, report = quantized_and_report(model, data, AdaRoundConfig(), weight=weight, BlockSize=4)
    assert initializers(plain)["w_scale"].shape == (3, 12)
    assert {layer.name for layer in report.layers} >= set(STEPS)
    assert error(model, tuned, unseen) < error(model, plain, unseen)


def two_inputs() -> tuple[onnx.ModelProto, onnx.ModelProto, np.ndarray]:
    """Float and quantized model of y = W a + b, z = W c + d with nothing else quantized; the weight (outputs, K)."""
    w = Weights(5)
    weight = w.conv(5, 9)
    text = """(float[N,9] a, float[N,9] c) => (float[N,5] y, float[N,5] z) {{
        {} [first] y = Gemm<transB=1>(a, w, b) [second] z = Gemm<transB=1, alpha=2.0>(c, w, d)
    }}"""
    constants = {"b": w.bias(5), "d": w.bias(5)}
    quantized = build(
        text.format("w = DequantizeLinear(w_q, w_scale)"), **constants,
        w_q=np.clip(np.rint(weight / 0.05), -127, 127).astype(np.int8), w_scale=0.05,
    )  # fmt: skip
    return build(text.format(""), w=weight, **constants), quantized, weight


def test_the_error_is_that_of_all_layers() -> None:
    """Mean over the rows of both; what is tuned for one of them has more of it."""
    model, quantized, weight = two_inputs()
    random = np.random.default_rng(0)
    mixing = random.standard_normal((2, 9, 9))
    data = {name: (random.standard_normal((60, 9)) @ mix).astype("f") for name, mix in zip("ac", mixing, strict=True)}
    tuned, report = finetune(model, quantized, None, Reader(data), AdaQuantConfig())
    first, second = report.layers
    held_out = np.arange(60) % 5 == 4
    for result, pair in ((quantized, "before"), (tuned, "after")):
        y, z = (
            ((have - want) ** 2).sum(axis=1) for have, want in zip(run(result, data), run(model, data), strict=True)
        )
        both = (y + z / 4) / 2  # the core sees outputs without alpha
        expected = np.array([both[~held_out].mean(), both[held_out].mean()])
        np.testing.assert_allclose(getattr(first, pair), expected, rtol=1e-3)
        np.testing.assert_allclose(getattr(second, pair), 4 * expected, rtol=1e-3)

    def joint(result: onnx.ModelProto) -> float:
        step = 0.05 * initializers(result)["w_q"] - weight
        return float(sum(((data[name][held_out] @ step.T) ** 2).sum() for name in "ac"))

    alone = []
    for output in range(2):  # only one of the layers is there
        models = []
        for whole in (model, quantized):
            part = copy_of(whole)
            del part.graph.output[1 - output], part.graph.node[-1 - output]
            models.append(part)
        alone.append(finetune(*models, None, Reader(data), AdaQuantConfig(update_bias=False))[0])
    assert joint(tuned) < min(map(joint, alone))


@pytest.mark.parametrize("pairs", [False, True], ids=["one DequantizeLinear", "one for each layer"])
def test_a_model_that_another_tool_quantized(pairs: bool) -> None:
    model = pyramid()
    data, unseen = samples(model, 60), samples(model, 60, seed=1)
    static = statically_quantized(model, data)
    if pairs:
        dequantize = next(node for node in static.graph.node if "head_w_quantized" in node.input)
        for node in [node for node in static.graph.node if dequantize.output[0] in node.input][1:]:
            own = copy_of(dequantize)
            own.name, own.output[0] = f"{node.name}_weight", f"{node.name}_weight"
            node.input[1] = own.output[0]
            static.graph.node.insert(0, own)
    readers = [node.op_type for node in static.graph.node if "head_w_quantized" in node.input]
    assert readers == ["DequantizeLinear"] * (3 if pairs else 1)
    tuned, report = finetune(model, static, None, Reader(data), AdaRoundConfig())
    assert not report.skipped
    assert len(report.layers) == 5
    assert error(model, tuned, unseen) < error(model, static, unseen)


@pytest.mark.parametrize("parallel", [False, True])
def test_levels_and_threads_do_not_change_a_bit(parallel: bool) -> None:
    model = pyramid()
    data, models = samples(model, 30), set()
    for level, threads in ((0, 1), (1, 2), (2, 1)):
        config = AdaRoundConfig(mem_opt_level=level, parallel=parallel)
        tuned, report = quantized_and_report(model, data, config, NumThreads=threads)
        assert [layer.name for layer in report.layers if layer.name in HEADS] == HEADS
        models.add(tuned.SerializeToString(deterministic=True))
    assert len(models) == 1


def test_the_largest_layer_comes_with_those_of_its_weight() -> None:
    model = pyramid()
    _, report = quantized_and_report(model, samples(model, 30), AdaRoundConfig(select_max_mem_layer=True))
    assert [layer.name for layer in report.layers] == HEADS
    assert {layer.node for layer in report.skipped} == {"stem", "behind"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"solver": "gradient", "num_iterations": 10}, "the gradient solver tunes one layer at a time"),
        ({"selective_update": True}, "selective_update judges one layer at a time"),
    ],
)
def test_what_tunes_one_layer_at_a_time_leaves_them(options: dict[str, object], why: str) -> None:
    model = pyramid()
    _, report = quantized_and_report(model, samples(model, 30), AdaRoundConfig(**options))
    assert {layer.node: layer.reason for layer in report.skipped} == {
        "large": f"it shares its weight with 'half', 'bare', and {why}",
        "half": f"it shares its weight with 'large', 'bare', and {why}",
        "bare": f"it shares its weight with 'large', 'half', and {why}",
    }


def test_one_that_cannot_be_tuned_holds_the_others() -> None:
    """The embedding table is a weight in one place and data in another."""
    text = """(int64[N,6] words) => (float[N,6,12] y) {
        [look_up] e = Gather(table, words)
        [hidden] h = MatMul(e, hidden_w)
        [tied] y = MatMul(h, table)
    }"""
    w = Weights(5)
    model = build(text, table=3 * w.conv(12, 12), hidden_w=w.conv(12, 12))
    data = {"words": np.random.default_rng(0).integers(0, 12, (40, 6))}
    _, report = quantized_and_report(model, data, AdaRoundConfig())
    assert [layer.name for layer in report.layers] == ["hidden"]
    (skipped,) = report.skipped
    assert skipped.node == "tied"
    assert "is read by Gather 'look_up' too, which is not tuned" in skipped.reason


# By name: a model in which two layers arrange a weight in different ways, with a place for the name that it has in the
# second, and the weight's shape.
ARRANGEMENTS = {
    "turned": (("(float[N,8] x) => (float[N,8] y) "
                "{{ [a] t = Gemm(x, w, b) u = Relu(t) [b] y = Gemm<transB=1>(u, {w}, c) }}"), (8, 12)),
    "turned, square": (("(float[N,12] x) => (float[N,12] y) "
                        "{{ [a] t = MatMul(x, w) u = Relu(t) [b] y = Gemm<transB=1>(u, {w}, b) }}"), (12, 12)),
    "either input": (("(float[N,12,12] x) => (float[N,12,12] y) "
                      "{{ [a] t = MatMul(x, w) u = Relu(t) [b] y = MatMul({w}, u) }}"), (12, 12)),
    "groups": (("(float[N,8,6,6] x, float[N,4,6,6] z) => (float[N,12,4,4] y, float[N,12,4,4] u) "
                "{{ [a] y = Conv<group=2>(x, w, b) [b] u = Conv(z, {w}, b) }}"), (12, 4, 3, 3)),
    "turned convolution": (("(float[N,12,6,6] x) => (float[N,12,6,6] y) "
                            "{{ [a] t = Conv(x, w, b) [b] y = ConvTranspose(t, {w}, b) }}"), (12, 12, 3, 3)),
    "normalization": (("(float[N,6,12] x, float[N,12,5] z) => (float[N,6,12] y, float[N,6,5] u) "
                       "{{ [a] y = LayerNormalization<axis=1>(x, w) [b] u = MatMul({w}, z) }}"), (6, 12)),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize(
    "weight",
    [
        Int8Spec(),
        UInt8Spec(quant_granularity=QuantGranularity.Channel),
        Int8Spec(quant_granularity=QuantGranularity.Channel, calibration_method=CalibMethod.MinMax),
        Int4Spec(quant_granularity=QuantGranularity.Group),
    ],
    ids=["tensor", "channel", "minimum and maximum", "blocks"],
)
def test_a_weight_that_layers_arrange_in_different_ways(name: str, weight: Int8Spec) -> None:
    """The models are those in which each of the layers has a weight of its own, of the same values."""
    text, shape = ARRANGEMENTS[name]
    w = Weights(5)
    values = scaled(w.conv(*shape), w.gains(shape[0]))
    constants = {"w": values, **{bias: w.bias(n) for bias, n in (("b", 12), ("c", 8)) if f" {bias})" in text}}
    shared, own = build(text.format(w="w"), **constants), build(text.format(w="v"), **constants, v=values)
    data, unseen = samples(shared, 60), samples(shared, 20, seed=1)
    for algorithms in ([], [AdaRoundConfig()], [AdaQuantConfig(solver="gradient", num_iterations=10)]):
        tied, report = quantized_and_report(shared, data, *algorithms, weight=weight, BlockSize=4)
        untied, _ = quantized_and_report(own, data, *algorithms, weight=weight, BlockSize=4)
        assert not report.skipped
        onnx.checker.check_model(tied, full_check=True)
        for optimise in (False, True):
            for one, other in zip(run(tied, unseen, optimise=optimise), run(untied, unseen), strict=True):
                np.testing.assert_allclose(one, other, atol=0.02 * np.ptp(other) if optimise else 0)


# By name: a model with {p}, a parameter of an operator, and w, a weight or what is quantized as one; and their values.
PARAMETERS = {
    "scales of Resize": (
        ("(float[N,3,4,4] x, float[N,4] z) => (float[N,3,2,8] y, float[N,4] u) "
        '{{ r = Relu(x) y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(r, "", {p}) '
        "u = LayerNormalization<axis=1>(z, w) }}"),
        np.array([1.0, 1.0, 0.5, 2.0]),
    ),
    "a bound of Clip": (
        "(float[N,3,4] x) => (float[N,3,4] y) {{ r = Mul(x, w) s = Sub(r, x) y = Clip(s, {p}) }}", np.array(-0.3)
    ),
    "the value of Pad": (
        "(float[N,3,4] x) => (float[N,3,6] y) {{ r = Mul(x, w) y = Pad(r, ends, {p}) }}", np.array(0.3),
    ),
    "a mean of BatchNormalization": (
        ("(float[N,4,3] x) => (float[N,4,3] y) "
        "{{ r = InstanceNormalization(x, w, ones) s = Relu(r) y = BatchNormalization(s, ones, w, {p}, ones) }}"),
        np.array([0.01, 3.0, 0.02, 9.0]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("weight", [Int8Spec(), Int4Spec()], ids=["8 bits", "4 bits"])
def test_a_parameter_of_an_operator_stays_as_it_is(name: str, weight: Int8Spec) -> None:
    text, values = PARAMETERS[name]
    others = {"ones": np.ones(4), "ends": np.array([0, 0, 1, 0, 0, 1])}
    constants = {"w": values, **{other: value for other, value in others.items() if other in text}}
    shared, own = build(text.format(p="w"), **constants), build(text.format(p="p"), **constants, p=values)
    data = samples(shared, 40)
    tied, untied = (quantized_and_report(model, data, weight=weight)[0] for model in (shared, own))
    for optimise in (False, True):
        for one, other in zip(run(tied, data, optimise=optimise), run(untied, data, optimise=optimise), strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_weight_that_another_tool_kept_for_two_arrangements_stays() -> None:
    model = build(ARRANGEMENTS["turned, square"][0].format(w="w"), w=Weights(5).conv(12, 12), b=Weights(5).bias(12))
    data = samples(model, 40)
    static = statically_quantized(model, data)
    with pytest.raises(ModelError, match=r"its weight is arranged in another way in 'a' than in 'b'"):
        finetune(model, static, None, Reader(data), AdaRoundConfig())


def test_the_scale_of_a_shared_weight_is_that_of_the_least_error() -> None:
    """On inputs that use other parts of the weight than its largest element."""
    weight = Weights(5).conv(8, 8)
    weight[0, 0] = 20
    model = build(
        "(float[N,8] a, float[N,8] c) => (float[N,8] y, float[N,8] z) { y = MatMul(a, w) z = MatMul(c, w) }",
        w=weight.T,
    )
    data = samples(model, 60)
    for array in data.values():
        array[:, 0] = 0
    errors = {}
    for method in (CalibMethod.MinMax, CalibMethod.MinOutputMSE):
        quantized, _ = quantized_and_report(model, data, weight=Int8Spec(calibration_method=method))
        errors[method] = error(model, quantized, data)
    assert errors[CalibMethod.MinOutputMSE] < 0.5 * errors[CalibMethod.MinMax]
