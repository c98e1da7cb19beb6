"""Q/DQ of newer opsets, with their attributes: finetuned as the same model in the oldest form, or one clear error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_models import Reader, Weights, build, initializers, mean_squared_error, run, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int4Spec,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    finetune,
)
from quark.onnx.inference.qdq_kernels import newest_qdq_opset

NEWEST = onnx.defs.onnx_opset_version()
OF_ONNXRUNTIME = newest_qdq_opset(NEWEST)
NARROW = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}
WIDE = {"int16": TensorProto.INT16, "uint16": TensorProto.UINT16}
WEIGHT, BIAS = Weights(5).conv(6, 3, 3, 3), Weights(6).bias(6)
ALGORITHMS = (AdaRoundConfig(), AdaQuantConfig(solver="gradient", num_iterations=20, output_qdq=True))


def float_model(opset: int = 17) -> onnx.ModelProto:
    text = "(float[N,3,6,6] x) => (float[N,6,4,4] y) { [conv] c = Conv(x, w, b) y = Relu(c) }"
    return build(text, opset=opset, w=WEIGHT, b=BIAS)


def quantized(
    opset: int, kind: str = "uint8", *, zeros: bool = True, q: str = "", dq: str = "", half: bool = False
) -> onnx.ModelProto:
    """Scales are powers of two, which 16 bits hold; zero points are 0.

    Args:
        kind: of the activations.
        zeros: whether the zero points are written.
        q, dq: attributes of QuantizeLinear and DequantizeLinear.
        half: scales of 16 bits.
    """
    step = np.array(2.0**-13 if "16" in kind else 2.0**-5)
    scales = np.exp2(np.ceil(np.log2(np.abs(WEIGHT).max(axis=(1, 2, 3)) / 127)))
    of_bias = np.float32(step * scales)
    constants = {
        "z": np.zeros((), kind),
        "w_q": np.rint(WEIGHT / scales.reshape(-1, 1, 1, 1)).astype(np.int8),
        "b_q": np.rint(BIAS / of_bias).astype(np.int32),
    }
    per_channel = f"<{dq}{', ' if dq else ''}axis=0>" if opset >= 13 else ""
    zero, attributes_q, attributes_dq = ", z" if zeros else "", f"<{q}>" if q else "", f"<{dq}>" if dq else ""
    text = f"""(float[N,3,6,6] x) => (float[N,6,4,4] y) {{
        x_q = QuantizeLinear{attributes_q}(x, s{zero}) d = DequantizeLinear{attributes_dq}(x_q, s{zero})
        w = DequantizeLinear{per_channel}(w_q, w_s) b = DequantizeLinear{"<axis=0>" if per_channel else ""}(b_q, b_s)
        [conv] c = Conv(d, w, b) r = Relu(c)
        y_q = QuantizeLinear{attributes_q}(r, s{zero}) y = DequantizeLinear{attributes_dq}(y_q, s{zero})
    }}"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    for name, value in constants.items():
        if zeros or name != "z":
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    floats = np.float16 if half else np.float32
    for name, value in (("s", step.astype(floats)), ("w_s", scales.astype(floats)), ("b_s", of_bias)):
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.checker.check_model(model, full_check=True)
    return model


def forms() -> Iterator[tuple[str, onnx.ModelProto, str]]:
    """What it is, the model, and the type of its activations."""
    for opset in range(13, OF_ONNXRUNTIME + 1):
        for kind, element in {**NARROW, **(WIDE if opset >= 21 else {})}.items():
            yield f"opset {opset}, {kind}", quantized(opset, kind), kind
            if opset >= 21:
                attributes = f"output_dtype={element}"
                yield f"opset {opset}, output_dtype", quantized(opset, kind, q=attributes), kind
                yield f"opset {opset}, output_dtype alone", quantized(opset, kind, zeros=False, q=attributes), kind
        if opset >= 19:
            yield f"opset {opset}, saturate", quantized(opset, q="saturate=0"), "uint8"
        if opset >= 21:
            yield f"opset {opset}, block_size", quantized(opset, q="block_size=0", dq="block_size=0"), "uint8"
        if opset >= 23:
            for precision in (TensorProto.UNDEFINED, TensorProto.FLOAT):
                yield f"opset {opset}, {precision=}", quantized(opset, q=f"precision={precision}"), "uint8"
            output = f"output_dtype={TensorProto.FLOAT}"
            yield f"opset {opset}, {output}", quantized(opset, dq=output), "uint8"
            yield f"opset {opset}, scales of 16 bits", quantized(opset, dq=output, half=True), "uint8"


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=["least squares", "gradient"])
def test_the_same_integers_in_every_form(algorithm: AdaRoundConfig) -> None:
    data = samples(float_model(), 40)
    oldest: dict[str, dict[str, np.ndarray]] = {}
    for what, model, kind in forms():
        tuned, report = finetune(float_model(), model, None, Reader(data), algorithm)
        assert [layer.name for layer in report.layers] == ["conv"], what
        assert not [note for note in report.notes if "not compared" in note], what
        assert [node.attribute for node in tuned.graph.node] == [node.attribute for node in model.graph.node]
        own = initializers(tuned)
        off = {name: np.abs(own[name] - oldest.setdefault(kind, own)[name]).max() for name in ("w_q", "b_q")}
        assert off["w_q"] == 0, what
        assert off["b_q"] <= ("16 bits" in what), what  # the sums are of floats that were rounded in another order
    assert oldest.keys() == {*NARROW, *WIDE}


def test_before_weights_had_channels() -> None:
    """Opset 10 has one scale for a tensor."""
    model = quantized(10)
    for tensor in model.graph.initializer:
        if tensor.name in ("w_s", "b_s"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).max(), tensor.name))
    data = samples(float_model(), 40)
    _, report = finetune(float_model(), model, None, Reader(data), AdaRoundConfig())
    assert [layer.name for layer in report.layers] == ["conv"]


def test_an_opset_that_onnxruntime_has_no_kernels_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quark.onnx.model_files.quantizer_gate.newest_qdq_opset", lambda opset: min(opset, 20))
    reader = Reader(samples(float_model(), 40))
    with pytest.raises(ModelError, match=r"QuantizeLinear 'x_q' is of opset 21, .* up to opset 20: give a quantized"):
        finetune(float_model(), quantized(21), None, reader, AdaRoundConfig())
    finetune(float_model(), quantized(19), None, reader, AdaRoundConfig())


@pytest.mark.skipif(NEWEST == OF_ONNXRUNTIME, reason="onnxruntime runs Q/DQ of every opset that onnx has")
def test_the_newest_opset() -> None:
    reader = Reader(samples(float_model(), 40))
    with pytest.raises(ModelError, match=f"is of opset {NEWEST}, .* up to opset {OF_ONNXRUNTIME}"):
        finetune(float_model(), quantized(NEWEST), None, reader, AdaRoundConfig())


@pytest.mark.parametrize("weight", [Int8Spec(), Int4Spec(quant_granularity=QuantGranularity.Channel)], ids=["8", "4"])
@pytest.mark.parametrize("opset", range(17, NEWEST + 1))
def test_float_models_of_every_opset(opset: int, weight: Int8Spec) -> None:
    """Models that are newer than onnxruntime's Q/DQ are quantized in the newest that it has."""
    model = float_model(opset)
    data = samples(model, 40)
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=[AdaRoundConfig()]))
    result = quantizer.quantize_model(model, None, Reader(data))
    assert result.opset_import[0].version <= OF_ONNXRUNTIME
    assert not [note for note in quantizer.report.notes if "preparation" in note]
    assert mean_squared_error(model, result, data) < 0.03 * np.var(run(model, data)[0])
    run(result, data, optimise=True)


def test_an_operator_that_only_the_newest_opset_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be quantized, and the error says why."""
    monkeypatch.setattr("quark.onnx.preparation.prepare.newest_qdq_opset", lambda opset: min(opset, 19))
    model = build("(float[N,8] x) => (float[N,8] y) { h = Gemm(x, w) y = Gelu(h) }", opset=20, w=np.eye(8))
    with pytest.raises(ModelError, match=r"an opset whose Q/DQ onnxruntime runs, .*Gelu"):
        ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
            model, None, Reader(samples(model, 40))
        )
