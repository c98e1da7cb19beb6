"""Tensors that cannot be quantized stay in float: masks, tensors that are not finite or never filled."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Reader, build, run

from quark.onnx import AdaRoundConfig, ModelQuantizer
from quark.onnx.config import QConfig
from quark.onnx.config.spec import Int8Spec, QLayerConfig, UInt8Spec

LENGTH, WIDTH = 8, 16
LAYER = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
PROJECT = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) "
APPLY = " o = MatMul(a, v) y = MatMul(o, wo)"
MASKED = {
    "Add": "[masked] m = Add(s, mask) a = Softmax<axis=-1>(m)",
    "Add and views": "[masked] m = Add(s, mask) r = Reshape(m, shape) a = Softmax<axis=-1>(r)",
    "Add and Max": "[masked] n = Add(s, mask) m = Max(n, least) a = Softmax<axis=-1>(m)",
    "Where": "[masked] m = Where(hidden, least, s) a = Softmax<axis=-1>(m)",
    "scores of an input": "i = Sub(one, c) d = Mul(i, least) [masked] m = Add(s, d) a = Softmax<axis=-1>(m)",
}


def attention(kind: str, value: float) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    size = f"float[N,{LENGTH},{WIDTH}]"
    inputs = f"{size} x" + (f", float[N,{LENGTH},{LENGTH}] c" if "(one, c)" in MASKED[kind] else "")
    hidden = np.triu(np.ones((1, LENGTH, LENGTH), bool), 1)
    constants = {f"w{i}": rng.standard_normal((WIDTH, WIDTH)) * (0.25 if i in "qk" else 1) for i in "qkvo"}
    given = {
        "mask": np.where(hidden, value, 0), "shape": np.array([0, LENGTH, LENGTH]), "one": 1.0, "hidden": hidden,
        "least": np.float32(value),
    }  # fmt: skip
    text = f"({inputs}) => ({size} y) {{ {PROJECT}{MASKED[kind]}{APPLY} }}"
    return build(
        text, **constants, **{name: v for name, v in given.items() if f" {name}" in text or f"({name}" in text}
    )


def data(model: onnx.ModelProto, samples: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    arrays = {"x": rng.standard_normal((samples, LENGTH, WIDTH)).astype(np.float32)}
    if len(model.graph.input) > 1:
        arrays["c"] = np.broadcast_to(np.tril(np.ones((LENGTH, LENGTH), np.float32)), (samples, LENGTH, LENGTH)).copy()
    return arrays


def noise(model: onnx.ModelProto, quantized: onnx.ModelProto, arrays: dict[str, np.ndarray], optimise: bool) -> float:
    (wanted,), (given,) = run(model, arrays), run(quantized, arrays, optimise=optimise)
    return float(np.mean((given - wanted) ** 2) / wanted.var())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((kind, value) for kind in MASKED for value in (-1e4, -3.4028234663852886e38)),
        *((kind, -np.inf) for kind in ("Add", "Add and views", "Where")),
    ],
)
def test_masked_scores_stay_in_float(kind: str, value: float) -> None:
    model = attention(kind, value)
    arrays = data(model)
    quantizer = ModelQuantizer(QConfig(global_config=LAYER))
    quantized = quantizer.quantize_model(model, None, Reader(arrays))
    assert noise(model, quantized, arrays, False) < 5e-3
    assert noise(model, quantized, arrays, True) < 5e-3
    assert any(("'m'" in line or "'r'" in line) and "stays in float" in line for line in quantizer.report.notes)
    rounded = {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert not rounded & {"m", "r"}
    assert {"x", "q", "k", "v", "a", "o"} <= rounded


def test_what_small_scores_lose_next_to_large_ones_is_no_reason() -> None:
    """Nearly all of a peaked Softmax lies within one step: nothing that counts is lost."""
    rng = np.random.default_rng(0)
    weight = 40 * rng.standard_normal((16, 64))
    text = (
        "(float[N,16] x) => (float[N,4] y) { s = MatMul(x, w) p = Softmax<axis=-1>(s) q = Mul(p, c) y = MatMul(q, v) }"
    )
    model = build(text, w=weight, v=rng.standard_normal((64, 4)), c=np.float32([3.0]))
    arrays = {"x": rng.standard_normal((64, 16)).astype(np.float32)}
    quantizer = ModelQuantizer(QConfig(global_config=LAYER))
    quantized = quantizer.quantize_model(model, None, Reader(arrays))
    assert not [note for note in quantizer.report.notes if "stays in float" in note]
    assert {"p", "q"} <= {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}


def test_a_constant_with_one_value_far_from_the_others_stays_in_float() -> None:
    rng = np.random.default_rng(0)
    bias = rng.standard_normal(16)
    bias[3] = -1e9
    text = "(float[N,4,8] x) => (float[N,4,5] y) { s = MatMul(x, w) t = Add(s, b) r = Relu(t) y = MatMul(r, v) }"
    model = build(text, w=rng.standard_normal((8, 16)), b=bias, v=rng.standard_normal((16, 5)))
    arrays = {"x": rng.standard_normal((32, 4, 8)).astype(np.float32)}
    quantizer = ModelQuantizer(QConfig(global_config=LAYER))
    quantized = quantizer.quantize_model(model, None, Reader(arrays))
    assert noise(model, quantized, arrays, False) < 2e-3
    assert any("tensor 'b'" in line for line in quantizer.report.notes)


@pytest.mark.parametrize("algorithm", [None, AdaRoundConfig()])
def test_padding_with_minus_infinity(algorithm: AdaRoundConfig | None) -> None:
    rng = np.random.default_rng(0)
    text = """(float[N,4,8,8] x) => (float[N,3,4,4] y) {
        h = Conv(x, w) p = Pad(h, ends, value) m = MaxPool<kernel_shape=[3,3], strides=[2,2]>(p) y = Conv(m, v, b) }"""
    model = build(
        text, w=rng.standard_normal((6, 4, 1, 1)), v=rng.standard_normal((3, 6, 1, 1)), b=rng.standard_normal(3),
        ends=np.array([0, 0, 1, 1, 0, 0, 1, 1]), value=np.float32(-np.inf),
    )  # fmt: skip
    arrays = {"x": rng.standard_normal((32, 4, 8, 8)).astype(np.float32)}
    config = QConfig(global_config=LAYER, algo_config=[algorithm] if algorithm else [])
    quantizer = ModelQuantizer(config)
    quantized = quantizer.quantize_model(model, None, Reader(arrays))
    assert noise(model, quantized, arrays, False) < 2e-3
    assert noise(model, quantized, arrays, True) < 2e-3
    assert any("tensor 'p'" in line and "Inf" in line for line in quantizer.report.notes)


def test_a_tensor_that_no_sample_fills_stays_in_float() -> None:
    rng = np.random.default_rng(0)
    text = """(float[1,4,6] x, int64[1] found) => (float[1,4,6] h, float[1,K,5] y) {
        h = MatMul(x, w) hits = Slice(h, zero, found, one) y = MatMul(hits, v) }"""
    model = build(
        text, w=rng.standard_normal((6, 6)), v=rng.standard_normal((6, 5)), zero=np.array([0]), one=np.array([1])
    )
    items = [{"x": rng.standard_normal((1, 4, 6)).astype(np.float32), "found": np.array([0])} for _ in range(32)]

    class Items:
        def __init__(self) -> None:
            self.left = iter(items)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quantizer = ModelQuantizer(QConfig(global_config=LAYER))
    quantized = quantizer.quantize_model(model, None, Items())
    items = [{**item, "found": np.array([3])} for item in items]
    pairs = [(run(model, item)[1], run(quantized, item)[1]) for item in items]
    wanted, given = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in range(2))
    assert np.mean((wanted - given) ** 2) / wanted.var() < 5e-3
    assert any("hits" in line and "empty on all calibration data" in line for line in quantizer.report.notes)
