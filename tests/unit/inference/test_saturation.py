"""Processors on which onnxruntime's default kernels for 8-bit integers saturate: results do not depend on it here."""

from __future__ import annotations

import numpy as np
from small_models import Reader, build, samples

from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.inference.saturation import products_saturate
from quark.onnx.inference.sessions import Engine, session


def test_integer_kernels_of_our_sessions_add_exactly() -> None:
    """One MatMul whose codes are 255 and 127: two products do not fit 16 bits."""
    model = build("(float[N,64] x) => (float[N,8] y) { y = MatMul(x, w) }", w=np.full((64, 8), 0.5, np.float32))
    items = [{"x": np.full((1, 64), value, np.float32)} for value in (0.0, 1.0)]
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantized = quantizer.quantize_model(model, None, items)
    (y,) = session(quantized, Engine(1), fuse_qdq=True).run(None, items[1])
    np.testing.assert_allclose(y, 32.0, rtol=0.01)


def test_the_report_says_what_such_a_processor_needs() -> None:
    model = build("(float[N,64] x) => (float[N,8] y) { y = MatMul(x, w) }", w=np.ones((64, 8), np.float32))
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantizer.quantize_model(model, None, Reader(samples(model, 8)))
    assert any("session.x64quantprecision" in note for note in quantizer.report.notes) == products_saturate()


def test_a_weight_of_several_nodes() -> None:
    """onnxruntime 1.32 does not load it with exact kernels, where it needs them: it is run as the model defines."""
    model = build(
        "(float[N,64] x) => (float[N,64] y) { t = MatMul(x, w) y = MatMul(t, w) }",
        w=np.full((64, 64), 1 / 64, np.float32),
    )
    items = [{"x": np.full((1, 64), value, np.float32)} for value in (0.0, 1.0)]
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantized = quantizer.quantize_model(model, None, items)
    assert not any("without optimisation" in warning for warning in quantizer.report.warnings)
    (y,) = session(quantized, Engine(1), fuse_qdq=True).run(None, items[1])
    np.testing.assert_allclose(y, 1.0, rtol=0.02)
