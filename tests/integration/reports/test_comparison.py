"""compare_models against sums written out in NumPy."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from small_models import Arrays, Reader, build, embedding, mlp, samples, separable_cnn

from quark.onnx import DataError, Int8Spec, ModelError, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, compare_models


def quantized(model: onnx.ModelProto) -> onnx.ModelProto:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))
    return ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 20)))


def in_batches(session: onnxruntime.InferenceSession, data: Arrays, batch: int) -> np.ndarray:
    """The output; integer kernels round in a way that may depend on the batch."""
    parts = ({name: array[start : start + batch] for name, array in data.items()} for start in range(0, 20, batch))
    return np.concatenate([session.run(None, part)[0] for part in parts])


@pytest.mark.parametrize("batch", [1, 4, 20])
@pytest.mark.parametrize("make", [separable_cnn, mlp, embedding])
def test_figures_are_those_of_numpy(make: object, batch: int) -> None:
    model = make()
    q, data = quantized(model), samples(model, 20)
    found = compare_models(model, q, Reader(data, batch=batch))
    assert found.samples == 20
    (want,) = ReferenceEvaluator(model).run(None, data)
    unoptimised = onnxruntime.SessionOptions()
    unoptimised.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    defined = onnxruntime.InferenceSession(q.SerializeToString(), unoptimised, providers=["CPUExecutionProvider"])
    (have,) = defined.run(None, data)
    exact = onnxruntime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")  # the same on processors without VNNI
    plain = onnxruntime.InferenceSession(q.SerializeToString(), exact, providers=["CPUExecutionProvider"])
    for outputs, agreement, got in (
        (found.outputs, found.agreement, have),
        (found.default_outputs, found.default_agreement, in_batches(plain, data, batch)),
    ):
        a, b = want.reshape(20, -1).astype(np.float64), got.reshape(20, -1).astype(np.float64)
        (output,) = outputs
        noise = ((a - b) ** 2).sum()
        assert output.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / noise), abs=0.2)
        assert output.l2 == pytest.approx(np.linalg.norm(a - b, axis=1).mean(), rel=0.03)
        cosines = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert output.cosine == pytest.approx(cosines.mean(), abs=1e-4)
        if want.ndim == 2:
            assert agreement == pytest.approx((a.argmax(axis=1) == b.argmax(axis=1)).mean(), abs=0.051)


def test_layers_show_where_the_error_comes_from() -> None:
    """A weight that is made worse by hand stands out."""
    model = separable_cnn()
    q, data = quantized(model), samples(model, 20)
    before = {layer.name: layer for layer in compare_models(model, q, Reader(data)).layers}
    for tensor in q.graph.initializer:
        if (
            tensor.name.startswith("pw1")
            and tensor.name.endswith("_quantized")
            and tensor.data_type == onnx.TensorProto.INT8
        ):
            integers = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array((integers // 64 * 64).astype(np.int8), tensor.name))
    after = {layer.name: layer for layer in compare_models(model, q, Reader(data)).layers}
    assert set(after) == {"stem", "dw1", "pw1", "dw2", "pw2", "classes"}
    assert after["pw1"].own > 3 * before["pw1"].own
    assert after["dw1"].own == pytest.approx(before["dw1"].own)
    assert after["classes"].own == pytest.approx(before["classes"].own)
    assert after["classes"].inherited > before["classes"].inherited


def test_a_model_is_itself() -> None:
    found = compare_models(mlp(), mlp(), samples(mlp(), 5)["x"])
    assert found.outputs[0].sqnr_db == np.inf
    assert found.outputs[0].cosine == pytest.approx(1)
    assert found.layers == ()
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["outputs"][0]["sqnr_db"] is None


def test_it_is_told_in_a_line() -> None:
    found = compare_models(mlp(), quantized(mlp()), samples(mlp(), 20))
    assert str(found) == f"20 samples, SQNR {found.outputs[0].sqnr_db:.1f} dB"
    assert "LayerError" not in repr(found)


def test_the_first_samples_only() -> None:
    assert compare_models(mlp(), mlp(), samples(mlp(), 50)["x"], samples=7).samples == 7


def test_several_outputs_of_several_kinds() -> None:
    outputs = "float[N,4] y, int64[N,4] i, float[N,4] zero"
    text = f"(float[N,4] x) => ({outputs}) {{{{ y = {{0}}(x)\ni = Cast<to=7>(x)\nzero = Sub(x, x) }}}}"
    first, second = build(text.format("Sin")), build(text.format("Tanh"))
    found = compare_models(first, second, np.ones((3, 4), np.float32))
    assert [output.name for output in found.outputs] == ["y", "zero"]
    assert np.isnan(found.outputs[1].cosine)


def test_models_that_are_not_one_model() -> None:
    with pytest.raises(ModelError, match="have not the same inputs"):
        compare_models(mlp(), embedding(), samples(mlp(), 2)["x"])
    other = build("(float[N,12] x) => (float[N,12] y, float[N,12] z) { y = Relu(x)\nz = Sin(x) }")
    with pytest.raises(ModelError, match="have not the same outputs"):
        compare_models(mlp(), other, samples(mlp(), 2)["x"])
    with pytest.raises(DataError, match="takes"):
        compare_models(mlp(), mlp(), np.ones((2, 5), np.float32))
