"""4- and 16-bit formats from the configuration to the finetuned model that onnxruntime runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from reference.evaluator import CONV_IS_RIGHT
from small_models import MODELS, Reader, Weights, build, initializers, mean_squared_error, run, samples

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    CalibMethod,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    Report,
    ScaleType,
    finetune,
)

ALGORITHMS = {
    "adaround": AdaRoundConfig(),
    "adaquant": AdaQuantConfig(),
    "adaround in steps": AdaRoundConfig(solver="gradient", num_iterations=150, batch_size=8, update_bias=True),
    "adaquant in steps": AdaQuantConfig(
        solver="gradient", num_iterations=150, batch_size=8, learning_rate=2e-3, update_bias=True
    ),
}
# (activations, weights), and how much of the plain model's error finetuning may leave on these models.
PAIRS = {
    ("UInt8", "Int4"): 0.75, ("UInt8", "UInt4"): 0.85, ("Int8", "Int4"): 0.75, ("UInt16", "UInt4"): 0.75,
    ("UInt16", "Int8"): 0.9, ("Int16", "UInt8"): 0.95, ("UInt8", "Int16"): 1.1, ("UInt16", "Int16"): 1.1,
    ("Int16", "UInt16"): 1.1,
}  # fmt: skip
GRANULARITY = {"per tensor": QuantGranularity.Tensor, "per channel": QuantGranularity.Channel}


def spec(kind: str, **options: object) -> QTensorConfig:
    return getattr(quark.onnx, f"{kind}Spec")(**options)


def quantize(
    model: onnx.ModelProto, layer: QLayerConfig, algorithm: AlgoConfig | None = None, *, count: int = 60
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(layer, algo_config=[] if algorithm is None else [algorithm]))
    before = model.SerializeToString()
    result = quantizer.quantize_model(model, None, Reader(samples(model, count)))
    assert model.SerializeToString() == before
    return result, quantizer.report


def changed(plain: onnx.ModelProto, tuned: onnx.ModelProto) -> set[str]:
    """Names of the integer weights and biases that differ; all else is equal."""
    assert list(plain.graph.node) == list(tuned.graph.node)
    assert (plain.opset_import, plain.ir_version) == (tuned.opset_import, tuned.ir_version)
    names = set()
    for a, b in zip(plain.graph.initializer, tuned.graph.initializer, strict=True):
        assert (a.name, a.data_type, list(a.dims)) == (b.name, b.data_type, list(b.dims))
        if not np.array_equal(numpy_helper.to_array(a), numpy_helper.to_array(b)):
            assert a.name.endswith("_quantized")
            names.add(a.name)
    return names


@pytest.mark.parametrize("granularity", GRANULARITY)
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_every_pair_of_formats_is_finetuned(pair: tuple[str, str], granularity: str):
    activation, weight = pair
    layer = QLayerConfig(spec(activation), weight=spec(weight, quant_granularity=GRANULARITY[granularity]))
    for name in ("separable", "residual"):
        model = MODELS[name]()
        unseen = samples(model, 64, seed=1)
        plain, _ = quantize(model, layer)
        error = mean_squared_error(model, plain, unseen)
        weights = {n: v for n, v in initializers(plain).items() if n.endswith("w_quantized")}
        assert {value.dtype.name for value in weights.values()} == {weight.lower()}
        for algorithm in (ALGORITHMS["adaround"], ALGORITHMS["adaquant"]):
            tuned, report = quantize(model, layer, algorithm)
            assert not report.skipped
            assert changed(plain, tuned) or PAIRS[pair] > 1
            assert mean_squared_error(model, tuned, unseen) < PAIRS[pair] * error
            (defined,), (optimised,) = run(tuned, unseen), run(tuned, unseen, optimise=True)
            assert np.abs(optimised - defined).max() < 0.05 * np.ptp(defined)


@pytest.mark.parametrize("kind", ["Int4", "UInt4"])
@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name.endswith("in steps")])
@pytest.mark.parametrize("name", ["separable", "residual"])
def test_few_bits_are_trained_in_steps_too(name: str, algorithm: str, kind: str):
    model = MODELS[name]()
    layer = QLayerConfig(spec("UInt8"), weight=spec(kind, quant_granularity=QuantGranularity.Channel))
    plain, _ = quantize(model, layer)
    tuned, report = quantize(model, layer, ALGORITHMS[algorithm])
    assert any(layer.accepted for layer in report.layers)
    assert changed(plain, tuned)
    seen = samples(model, 60)
    assert mean_squared_error(model, tuned, seen) < 0.9 * mean_squared_error(model, plain, seen)


@pytest.mark.parametrize("method", [None, CalibMethod.MinMax])
@pytest.mark.parametrize("kind", ["Int4", "UInt4"])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"autoencoder"} - (set() if CONV_IS_RIGHT else {"conv1d"})))
def test_onnx_computes_what_onnxruntime_does(name: str, kind: str, method: CalibMethod | None):
    """The reference evaluator knows nothing of onnxruntime's kernels and packing; nor of ConvTranspose with groups."""
    model = MODELS[name]()
    layer = QLayerConfig(
        spec("UInt16"), weight=spec(kind, calibration_method=method, quant_granularity=QuantGranularity.Channel)
    )
    tuned, _ = quantize(model, layer, ALGORITHMS["adaquant"])
    onnx.checker.check_model(tuned, full_check=True)
    data = samples(model, 5)
    (ours,), (expected,) = run(tuned, data), ReferenceEvaluator(tuned).run(None, data)
    assert np.abs(ours - expected).max() < 1e-3 * np.ptp(expected)


def test_a_model_that_stays_in_an_old_opset_gets_onnxruntimes_domain():
    """GroupNormalization of opset 18 cannot be raised by onnx's converter."""
    w = Weights(0)
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[N,8,6] x) => (float[N,8,6] y)
        <float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}> {
            [conv] t = Conv<pads=[1,1]>(x, w, c) [norm] u = GroupNormalization<num_groups=2>(t, s, b)
            [last] y = Conv(u, v)
        }"""
    )
    for name, value in {"w": w.conv(8, 8, 3), "c": w.bias(8), "v": w.conv(8, 8, 1)}.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), name))
    unseen = samples(model, 32, seed=1)
    for kinds in (("UInt8", "Int4"), ("UInt16", "Int8")):
        layer = QLayerConfig(spec(kinds[0]), weight=spec(kinds[1], quant_granularity=QuantGranularity.Channel))
        plain, _ = quantize(model, layer)
        tuned, report = quantize(model, layer, ALGORITHMS["adaround"])
        assert {o.domain: o.version for o in tuned.opset_import} == {"": 18, "com.microsoft": 1}
        assert {n.domain for n in tuned.graph.node if n.op_type == "DequantizeLinear"} == {"com.microsoft"}
        assert [layer.name for layer in report.layers if layer.accepted] == ["conv", "last"]
        assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, plain, unseen)


@pytest.mark.parametrize("kind", ["Int4", "UInt4"])
def test_the_scale_of_a_normalization_keeps_8_bits(kind: str):
    """Unless its own spec says otherwise."""
    w = Weights(0)
    model = build(
        "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) y = LayerNormalization(h, s, b) }",
        w=w.conv(8, 8), s=w.gains(8), b=w.bias(8),
    )  # fmt: skip
    layer = QLayerConfig(spec("UInt8"), weight=spec(kind))
    types = {}
    for name, own in (("default", {}), ("asked for", {QLayerConfig(weight=spec("Int4")): ["LayerNormalization"]})):
        quantizer = ModelQuantizer(QConfig(layer, layer_type_config=own, algo_config=[ALGORITHMS["adaround"]]))
        result = initializers(quantizer.quantize_model(model, None, Reader(samples(model, 40))))
        types[name] = (result["w_quantized"].dtype.name, result["s_quantized"].dtype.name)
    assert types == {"default": (kind.lower(), kind.lower().replace("4", "8")), "asked for": (kind.lower(), "int4")}


@pytest.mark.parametrize("algorithm", ["adaround", "adaquant"])
def test_mixed_widths(algorithm: str):
    """Each layer has its own: the first and the last one wide, as is usual; the opset suits the most demanding."""
    model = MODELS["separable"]()
    narrow, wide = (spec(kind, quant_granularity=QuantGranularity.Channel) for kind in ("Int4", "Int8"))
    layers = {
        QLayerConfig(weight=wide): ["stem", "classes"],
        QLayerConfig(input_tensors=spec("UInt16"), bias=spec("Int16")): ["pw2"],
    }
    plain, tuned = (
        ModelQuantizer(
            QConfig(QLayerConfig(spec("UInt8"), weight=narrow), specific_layer_config=layers, algo_config=algorithms)
        ).quantize_model(model, None, Reader(samples(model, 80)))
        for algorithms in ([], [ALGORITHMS[algorithm]])
    )
    values = initializers(tuned)
    kinds = {
        name.removesuffix("_w_quantized"): v.dtype.name for name, v in values.items() if name.endswith("_w_quantized")
    }
    assert kinds == {"stem": "int8", "dw1": "int4", "pw1": "int4", "dw2": "int4", "pw2": "int4", "classes": "int8"}
    assert values["pw2_b_quantized"].dtype == np.int16
    assert {values[n].dtype.name for n in values if n.startswith("t") and n.endswith("_zero_point")} == {
        "uint8",
        "uint16",
    }
    assert tuned.opset_import[0].version == 21
    assert changed(plain, tuned) >= {f"{name}_w_quantized" for name in kinds}
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.75 * mean_squared_error(model, plain, unseen)
    (defined,), (optimised,) = run(tuned, unseen), run(tuned, unseen, optimise=True)
    assert np.abs(optimised - defined).max() < 0.05 * np.ptp(defined)


def test_overrides_of_single_tensors():
    model = MODELS["separable"]()
    overrides = {"t2": [{"quant_type": "QUInt16"}], "pw1_w": [{"quant_type": "QInt4", "symmetric": True}]}
    config = QConfig(QLayerConfig(spec("UInt8"), weight=spec("Int8")), TensorQuantOverrides=overrides)
    result = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 40)))
    values = initializers(result)
    assert (values["t2_zero_point"].dtype.name, values["pw1_w_quantized"].dtype.name) == ("uint16", "int4")
    assert result.opset_import[0].version == 21
    assert mean_squared_error(model, result, samples(model, 64, seed=1)) < 0.3


@pytest.mark.parametrize("kind", ["Int4", "UInt4", "Int8"])
@pytest.mark.parametrize("name", ["mlp", "embedding"])
def test_scales_of_blocks(name: str, kind: str):
    """Finer than one scale per channel, and so nearer; Conv keeps one per channel."""
    model = MODELS[name]()
    unseen, error = samples(model, 64, seed=1), {}
    for granularity in (QuantGranularity.Channel, QuantGranularity.Group):
        layer = QLayerConfig(spec("UInt8"), weight=spec(kind, quant_granularity=granularity))
        plain = ModelQuantizer(QConfig(layer, BlockSize=4)).quantize_model(model, None, Reader(samples(model, 60)))
        error[granularity] = mean_squared_error(model, plain, unseen)
    assert error[QuantGranularity.Group] < (0.8 if kind.endswith("4") else 1.0) * error[QuantGranularity.Channel]
    for node in plain.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith("w_quantized"):
            assert {a.name: a.i for a in node.attribute}["block_size"] == 4
    seen = samples(model, 60)
    for algorithm in ALGORITHMS.values():
        keeping = replace(algorithm, keep_worse=True)
        quantizer = ModelQuantizer(QConfig(layer, algo_config=[keeping], BlockSize=4))
        tuned = quantizer.quantize_model(model, None, Reader(seen))
        assert not quantizer.report.skipped
        assert changed(plain, tuned)
        if algorithm.solver == "auto":  # few steps on few samples do not always help
            assert mean_squared_error(model, tuned, seen) < mean_squared_error(model, plain, seen)
        (defined,), (optimised,) = run(tuned, unseen), run(tuned, unseen, optimise=True)
        assert np.abs(optimised - defined).max() < 0.05 * np.ptp(defined)
    (expected,) = ReferenceEvaluator(tuned).run(None, unseen)
    assert np.abs(defined - expected).max() < 0.02 * np.ptp(expected)


def test_blocks_of_a_model_with_convolutions():
    model = MODELS["residual"]()
    layer = QLayerConfig(spec("UInt8"), weight=spec("UInt4", quant_granularity=QuantGranularity.Group))
    config = QConfig(layer, algo_config=[ALGORITHMS["adaround"]], BlockSize=4)
    values = initializers(ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 60))))
    scales = {name.removesuffix("_w_scale"): v.shape for name, v in values.items() if name.endswith("_w_scale")}
    assert scales == {"stem": (8,), "conv2": (8,), "conv3": (8,), "product": (2, 6)}


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("block", [4, 5])
def test_foreign_blocks_are_finetuned(op: str, block: int):
    """As any tool may write them; blocks that do not divide the inputs included."""
    w = Weights(0)
    weight = (w.conv(6, 12, gains=w.gains(12)) if op == "Gemm" else w.conv(6, 12, gains=w.gains(12)).T).astype(
        np.float32
    )
    axis, text = (1, "Gemm<transB=1>") if op == "Gemm" else (0, "MatMul")
    at, count = np.arange(12) // block, -(-12 // block)
    parts = [np.abs(weight.take(np.flatnonzero(at == b), axis)).max(axis=axis) / 7 for b in range(count)]
    scale = np.stack(parts, axis).astype(np.float32)
    integers = np.clip(np.rint(weight / scale.take(at, axis)), -8, 7)
    model = build(f"(float[N,12] x) => (float[N,6] y) {{ [layer] y = {text}(x, w) }}", w=weight)
    quantized = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N,12] x) => (float[N,6] y) '
        f"{{ r = DequantizeLinear<axis={axis}, block_size={block}>(q, s) [layer] y = {text}(x, r) }}"
    )
    int4 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT4)
    for name, value in {"q": integers.astype(int4), "s": scale}.items():
        quantized.graph.initializer.append(numpy_helper.from_array(value, name))
    mixed = np.random.default_rng(0).standard_normal((12, 12))  # inputs that have to do with each other
    seen, unseen = ({"x": (samples(model, n, seed=s)["x"] @ mixed).astype("f")} for n, s in ((800, 0), (100, 1)))
    for algorithm in ALGORITHMS.values():
        tuned, report = finetune(model, quantized, None, Reader(seen), algorithm)
        (layer,) = report.layers
        assert layer.accepted, algorithm
        assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, quantized, unseen)


def test_blocks_need_opset_21():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> g (float[N,8,6] x) => (float[N,8,6] y)
        <float[2] s = {1.0, 2.0}, float[2] b = {0.0, 1.0}> { y = GroupNormalization<num_groups=2>(x, s, b) }"""
    )
    layer = QLayerConfig(spec("UInt8"), weight=spec("Int8", quant_granularity=QuantGranularity.Group))
    with pytest.raises(ModelError, match=r"QuantGranularity.Group needs opset 21, .* take Channel"):
        quantize(model, layer)


@pytest.mark.parametrize(("kind", "opset"), [("Int8", 17), ("Int16", 21), ("Int4", 21)])
def test_the_opset_rises_only_for_formats_that_need_it(kind: str, opset: int):
    result, _ = quantize(MODELS["separable"](), QLayerConfig(spec("UInt8"), weight=spec(kind)))
    assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", opset)]


@pytest.mark.parametrize("kind", ["int2", "uint2"])
@pytest.mark.parametrize("algorithm", ["adaround", "adaquant"])
def test_foreign_weights_of_2_bits_are_finetuned(kind: str, algorithm: str):
    """onnxruntime runs them where it does not fuse them: a Conv between floats."""
    w = Weights(0)
    weight = w.conv(6, 4, 3, 3).astype(np.float32)
    dtype, zero = onnx.helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, kind.upper())), 2 * (kind[0] == "u")
    scale = (np.abs(weight).max(axis=(1, 2, 3)) * 0.4).astype(np.float32)
    integers = np.clip(np.rint(weight / scale[:, None, None, None]) + zero, zero - 2, zero + 1)
    model = build("(float[N,4,8,8] x) => (float[N,6,6,6] y) { [conv] y = Conv(x, w) }", w=weight)
    quantized = onnx.parser.parse_model(
        '<ir_version: 13, opset_import: ["": 25]> g (float[N,4,8,8] x) => (float[N,6,6,6] y) '
        "{ r = DequantizeLinear<axis=0>(q, s, z) [conv] y = Conv(x, r) }"
    )
    for name, value in {"q": integers.astype(dtype), "s": scale, "z": np.full(6, zero).astype(dtype)}.items():
        quantized.graph.initializer.append(numpy_helper.from_array(value, name))
    tuned, report = finetune(model, quantized, None, Reader(samples(model, 40)), ALGORITHMS[algorithm])
    (layer,) = report.layers
    assert layer.accepted
    tensors = {t.name: t for t in tuned.graph.initializer}
    assert numpy_helper.to_array(tensors["q"]).dtype == dtype
    assert len(tensors["q"].raw_data) == weight.size // 4
    unseen = samples(model, 32, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.8 * mean_squared_error(model, quantized, unseen)
    np.testing.assert_allclose(
        run(tuned, unseen, optimise=True)[0], ReferenceEvaluator(tuned).run(None, unseen)[0], atol=1e-4
    )


@pytest.mark.parametrize("method", [None, CalibMethod.MinMax, CalibMethod.MinMSE, CalibMethod.Percentile])
@pytest.mark.parametrize("granularity", QuantGranularity)
@pytest.mark.parametrize("pair", [("UInt8", "Int4"), ("UInt16", "Int8"), ("Int16", "UInt4")], ids=" ".join)
def test_powers_of_two_whatever_the_format(
    pair: tuple[str, str], granularity: QuantGranularity, method: CalibMethod | None
):
    activation, weight = (spec(kind, scale_type=ScaleType.PowerOf2) for kind in pair)
    weight = replace(weight, calibration_method=method, quant_granularity=granularity)
    layer = QLayerConfig(activation, weight=weight)
    model = MODELS["mlp"]()
    plain, _ = quantize(model, layer)
    scales = {name: value for name, value in initializers(plain).items() if name.endswith("_scale")}
    assert scales
    for values in scales.values():
        np.testing.assert_array_equal(np.log2(values) % 1, 0)
    tuned, report = quantize(model, layer, ALGORITHMS["adaquant"])
    assert not report.skipped
    changed(plain, tuned)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) <= mean_squared_error(model, plain, unseen)


def test_what_onnxruntime_only_runs_as_it_stands_is_finetuned_too():
    """Between 8-bit Q/DQ it makes a kernel of a Conv that refuses 2-bit weights."""
    weight = Weights(0).conv(6, 4, 3, 3).astype(np.float32)
    model = build("(float[N,4,8,8] x) => (float[N,6,6,6] y) { [conv] y = Conv(x, w) }", w=weight)
    constants = {
        "q": np.clip(np.rint(weight / 0.1), -2, 1).astype(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.INT2)),
        "s": np.float32(0.1), "sx": np.float32(0.04), "sy": np.float32(0.08), "z": np.int8(0),
    }  # fmt: skip
    quantized = onnx.parser.parse_model(
        '<ir_version: 13, opset_import: ["": 25]> g (float[N,4,8,8] x) => (float[N,6,6,6] y) {'
        "a = QuantizeLinear(x, sx, z) b = DequantizeLinear(a, sx, z) r = DequantizeLinear(q, s) "
        "[conv] c = Conv(b, r) d = QuantizeLinear(c, sy, z) y = DequantizeLinear(d, sy, z) }"
    )
    quantized.graph.initializer.extend(numpy_helper.from_array(np.array(v), n) for n, v in constants.items())
    tuned, report = finetune(model, quantized, None, Reader(samples(model, 40)), ALGORITHMS["adaround"])
    assert (report.end_to_end.before_default, report.end_to_end.after_default) == (None, None)
    assert any("only without optimisation" in warning for warning in report.warnings)
    assert "default optimisation" in report.full(300)
    assert '"before_default": null' in report.to_json()
    unseen = samples(model, 32, seed=1)
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, quantized, unseen)
