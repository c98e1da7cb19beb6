"""Models of other types than float32: quantized and finetuned, they take and give what they took and gave."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from foreign import in_floats, statically_quantized
from onnx import TensorProto, numpy_helper
from small_models import MODELS, Arrays, Reader, Weights, build, mean_squared_error, run, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    DataError,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    Report,
    UInt8Spec,
    finetune,
)

DTYPES = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
INT8 = Int8Spec()


def quantized_and_report(
    model: onnx.ModelProto, data: Arrays, algorithm: AdaRoundConfig | None = None, *, weight: QTensorConfig = INT8
) -> tuple[onnx.ModelProto, Report]:
    algorithms = [algorithm] if algorithm else []
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight), algo_config=algorithms))
    return quantizer.quantize_model(model, None, Reader(data)), quantizer.report


def data_for(model: onnx.ModelProto, dtype: type, count: int, seed: int = 0) -> Arrays:
    arrays = samples(model, count, seed=seed)
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def error(float_model: onnx.ModelProto, model: onnx.ModelProto, data: Arrays) -> float:
    """Return the mean squared error of a model of another float type against the float32 model."""
    real = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in data.items()}
    return float(((run(float_model, real)[0] - run(model, data)[0].astype(np.float64)) ** 2).mean())


@pytest.mark.parametrize("kind", DTYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_other_floats(name: str, kind: int) -> None:
    float_model, dtype = MODELS[name](), DTYPES[kind]
    model = in_floats(float_model, kind)
    data, unseen = data_for(float_model, dtype, 160), data_for(float_model, dtype, 256, seed=1)
    plain, _ = quantized_and_report(model, data)
    tuned, report = quantized_and_report(model, data, AdaRoundConfig())
    assert len(report.layers) == sum(n.op_type in LAYERS for n in model.graph.node)
    assert not report.skipped
    assert run(tuned, unseen)[0].dtype == dtype
    assert error(float_model, tuned, unseen) < error(float_model, plain, unseen)
    assert report.end_to_end.after.l2 < report.end_to_end.before.l2


def test_data_of_another_float_is_an_error() -> None:
    model = in_floats(separable_cnn(), TensorProto.FLOAT16)
    with pytest.raises(DataError, match=r"input 'x' is float32: the model takes float16, convert it with astype"):
        quantized_and_report(model, samples(separable_cnn(), 12))


@pytest.mark.parametrize("options", [{"selective_update": True}, {"mem_opt_level": 2}, {"solver": "gradient"}], ids=str)
def test_float16_with_other_options(options: dict[str, object]) -> None:
    float_model = separable_cnn()
    model, data = in_floats(float_model, TensorProto.FLOAT16), data_for(float_model, np.float16, 40)
    plain, _ = quantized_and_report(model, data)
    tuned, _ = quantized_and_report(model, data, AdaRoundConfig(num_iterations=100, **options))
    assert error(float_model, tuned, data) < error(float_model, plain, data)


def test_a_float16_model_that_another_tool_quantized() -> None:
    """From opset 19 on Q/DQ have float16 scales, and the quantized model computes in float16 between them."""
    float_model = separable_cnn(opset=19)
    float_model.ir_version = 9
    half = in_floats(float_model, TensorProto.FLOAT16)
    data, unseen = data_for(float_model, np.float16, 40), data_for(float_model, np.float16, 64, seed=1)
    static = statically_quantized(half, data)
    assert any(tensor.data_type == TensorProto.FLOAT16 for tensor in static.graph.initializer)
    tuned, report = finetune(half, static, None, Reader(data), AdaRoundConfig())
    assert not report.skipped
    assert error(float_model, tuned, unseen) < error(float_model, static, unseen)


def test_inputs_of_many_types() -> None:
    w = Weights(0)
    model = build(
        """(int32[N,8] a, bool[N,8] b, int64[N] unused, uint8[N,8] c, double[N,8] d) => (float[N,4] y, int64[N,4] z) {
            a_real = Cast<to=1>(a) b_real = Cast<to=1>(b) c_real = Cast<to=1>(c) d_real = Cast<to=1>(d)
            t1 = Mul(a_real, b_real) t2 = Add(t1, c_real) t3 = Add(t2, d_real)
            [layer] y = Gemm(t3, w, bias) z = Cast<to=7>(y)
        }""",
        w=w.conv(4, 8).T, bias=w.bias(4),
    )  # fmt: skip
    random = np.random.default_rng(0)

    def data(count: int) -> Arrays:
        return {
            "a": random.integers(-5, 5, (count, 8)).astype(np.int32),
            "b": random.integers(0, 2, (count, 8)).astype(bool),
            "unused": np.arange(count),
            "c": random.integers(0, 9, (count, 8)).astype(np.uint8),
            "d": random.standard_normal((count, 8)),
        }

    fitted, unseen, weight = data(60), data(60), Int4Spec()
    plain, _ = quantized_and_report(model, fitted, weight=weight)
    tuned, report = quantized_and_report(model, fitted, AdaRoundConfig(), weight=weight)
    assert [layer.name for layer in report.layers] == ["layer"]
    assert mean_squared_error(model, tuned, unseen) <= mean_squared_error(model, plain, unseen)
    assert run(tuned, unseen)[1].dtype == np.int64


def test_text_as_input() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "ai.onnx.ml": 3]>
        g (string[N,4] word, float[N,4] x) => (float[N,3] y) {
            i = ai.onnx.ml.LabelEncoder<keys_strings=["a","b"], values_floats=[1.0,2.0], default_float=0.0>(word)
            t = Add(i, x) [layer] y = Gemm(t, w)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(Weights(0).conv(4, 3).astype("f"), "w"))
    random = np.random.default_rng(0)
    data = {
        "word": random.choice(np.array(["a", "b", "other"], object), (60, 4)),
        "x": random.standard_normal((60, 4)).astype("f"),
    }
    plain, _ = quantized_and_report(model, data)
    tuned, report = quantized_and_report(model, data, AdaRoundConfig())
    assert [layer.name for layer in report.layers] == ["layer"]
    assert mean_squared_error(model, tuned, data) < mean_squared_error(model, plain, data)
