"""No Q/DQ between a layer and the activation behind it; everywhere else it stays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType
from small_models import MODELS, build, initializers, run, samples

from quark.onnx.config.spec import ScaleType
from quark.onnx.preparation.prepare import prepare
from quark.onnx.qdq.fused_activations import drop_qdq_before_activations
from quark.onnx.qdq.insert_qdq import calibration_tensors, insert_qdq
from quark.onnx.qdq.qdq_options import QdqOptions
from quark.onnx.qdq.quant_overrides import TensorFormat

PLAIN = QdqOptions(activation_type=QuantType.QInt8, activation_symmetric=True)
KINDS = ("Relu", "LeakyRelu", "PRelu", "Clip")
FUSED = replace(PLAIN, fused=dict.fromkeys(KINDS, True))
STEP = 0.25  # of all quantizers: no value saturates
LAYERS = {
    "conv": "Conv(x, w)",
    "transposed": "ConvTranspose(x, w)",
    "add": "Add(x, x)",
    "mean": "GlobalAveragePool(x)",
    "average": "AveragePool<kernel_shape=[2, 2]>(c)",
    "maximum": "MaxPool<kernel_shape=[2, 2]>(c)",
    "matmul": "MatMul(x, v)",
}
ACTIVATIONS = {
    "relu": "Relu({})",
    "leaky": "LeakyRelu({})",
    "prelu": "PRelu({}, slope)",
    "clip 6": "Clip({}, zero, six)",
    "clip 1": "Clip({}, zero, one)",
}
CONSTANTS = {
    "w": np.random.default_rng(0).standard_normal((4, 4, 1, 1)),
    "v": np.random.default_rng(1).standard_normal((6, 6)),
    "slope": np.full((4, 1, 1), 0.2), "zero": 0.0, "six": 6.0, "one": 1.0, "minus": -1.0,
}  # fmt: skip


def model(nodes: str, outputs: str = "float[N,A,B,C] y") -> onnx.ModelProto:
    used = {name: value for name, value in CONSTANTS.items() if f" {name}" in nodes.replace(",", " ").replace(")", " ")}
    return prepare(build(f"(float[N,4,6,6] x) => ({outputs}) {{ {nodes} }}", **used))


def quantized(float_model: onnx.ModelProto, options: QdqOptions) -> onnx.ModelProto:
    ranges = dict.fromkeys(calibration_tensors(float_model, options), (-STEP * 127, STEP * 127))
    result = insert_qdq(float_model, ranges, {}, options)
    onnx.checker.check_model(result, full_check=True)
    return result


def is_direct(model: onnx.ModelProto, activation: str) -> bool:
    """Whether the node of that name reads what another operator than DequantizeLinear made."""
    makers = {node.output[0]: node.op_type for node in model.graph.node}
    (node,) = (node for node in model.graph.node if node.name == activation)
    return makers[node.input[0]] != "DequantizeLinear"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_and_its_activation(layer: str, activation: str):
    float_model = model(f"c = Conv(x, w) z = {LAYERS[layer]} [act] y = {ACTIVATIONS[activation].format('z')}")
    before, after = quantized(float_model, PLAIN), quantized(float_model, FUSED)
    assert not is_direct(before, "act")
    assert is_direct(after, "act")
    gone = {node.name for node in before.graph.node} - {node.name for node in after.graph.node}
    assert gone == {"z_QuantizeLinear", "z_DequantizeLinear"}
    read = {name for node in after.graph.node for name in node.input}
    assert set(initializers(after)) <= read
    x = np.random.default_rng(2).standard_normal((3, 4, 6, 6)).astype(np.float32)
    (expected,), (found,) = run(before, {"x": x}), run(after, {"x": x})
    assert np.abs(found - expected).max() <= 2 * STEP  # one rounding less


@pytest.mark.parametrize(
    "nodes",
    [
        "z = Conv(x, w) [act] y = Sigmoid(z)",
        "z = Conv(x, w) [act] y = Clip(z, minus, one)",
        "z = Conv(x, w) [act] y = Clip(z, zero)",
        "z = Conv(x, w) [act] r = Relu(z) y = Add(z, r)",
        "z = Concat<axis=1>(x, x) [act] y = Relu(z)",
        "c = Conv(x, w) z = Transpose<perm=[0,1,3,2]>(c) [act] y = Relu(z)",
    ],
    ids=["sigmoid", "clip below zero", "clip without end", "two readers", "concat", "view"],
)
def test_where_it_stays(nodes: str):
    assert not is_direct(quantized(model(nodes), FUSED), "act")


def test_an_output_of_the_model_keeps_its_qdq():
    float_model = model("z = Conv(x, w) [act] y = Relu(z)", "float[N,4,6,6] y, float[N,4,6,6] z")
    before, after = quantized(float_model, PLAIN), quantized(float_model, FUSED)
    assert [node.name for node in before.graph.node] == [node.name for node in after.graph.node]


INT8, POWERS = QuantType.QInt8, ScaleType.PowerOf2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PLAIN, False),
        (replace(PLAIN, activation_scales=POWERS), True),
        (replace(PLAIN, activation_scales=ScaleType.Int16), False),
        (replace(PLAIN, activation_scales=POWERS, fused={"Relu": False}), False),
        (replace(PLAIN, activation_scales=POWERS, fused={"Clip": False}), True),
        (replace(PLAIN, fused={"Relu": True}), True),
        (replace(PLAIN, formats={"y": TensorFormat(INT8, symmetric=True, scales=POWERS)}), True),
        (replace(PLAIN, activation_scales=POWERS, formats={"y": TensorFormat(INT8, symmetric=True)}), False),
    ],
)
def test_by_itself_where_scales_are_powers_of_two(options: QdqOptions, expected: bool):
    assert is_direct(quantized(model("z = Conv(x, w) [act] y = Relu(z)"), options), "act") == expected


def test_a_model_without_quantization_stays():
    float_model = model("z = Conv(x, w) [act] y = Relu(z)")
    before = list(float_model.graph.node)
    drop_qdq_before_activations(float_model, lambda *_: True)
    assert list(float_model.graph.node) == before


@pytest.mark.parametrize("name", MODELS)
def test_models_still_run(name: str):
    float_model = prepare(MODELS[name]())
    arrays = samples(float_model, 4)
    fused = quantized(float_model, FUSED)
    for plain, optimised in zip(run(fused, arrays), run(fused, arrays, optimise=True), strict=True):
        np.testing.assert_allclose(plain, optimised, rtol=0, atol=0.1 * max(np.ptp(plain), 1))
