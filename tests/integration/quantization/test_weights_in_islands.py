"""Weights of layers that lie wholly in islands stay in float where their quantizers alone destroy the model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Arrays, build, run, samples

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.inference.sessions import Engine
from quark.onnx.qdq.insert_qdq import calibration_tensors, qdq_model
from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES, QdqOptions
from quark.onnx.sensitivity.weights_in_float import weights_in_float

pytestmark = pytest.mark.islands


def spectrum(spread: float) -> onnx.ModelProto:
    """Two filters, a logarithm of the powers, a layer behind it; the channels of the filters span so many decades."""
    random = np.random.default_rng(1)

    def channels(count: int) -> np.ndarray:
        return 10.0 ** np.linspace(-spread, 0, count)

    return build(
        """(float[N,16] x) => (float[N,8] y) {
            [gain] g = Mul(x, loudness)
            [first] f = MatMul(g, first_w)
            [second] h = MatMul(f, second_w)
            [power] p = Mul(h, h)
            [floor] q = Add(p, least)
            [log] l = Log(q)
            [head] y = Gemm(l, head_w, head_b)
        }""",
        loudness=10.0 ** np.linspace(-3, 0, 16), least=np.float32(1e-9),
        first_w=np.eye(16) + random.normal(0, 1e-4, (16, 16)), second_w=random.normal(0, 0.2, (16, 24)) * channels(24),
        head_w=random.normal(0, 0.2, (24, 8)), head_b=random.normal(0, 1, 8),
    )  # fmt: skip


def quantized(model: onnx.ModelProto, data: Arrays, **options: object) -> tuple[onnx.ModelProto, ModelQuantizer]:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), QuantizeAllOpTypes=True, **options)
    quantizer = ModelQuantizer(config)
    return quantizer.quantize_model(model, None, data), quantizer


def error(model: onnx.ModelProto, other: onnx.ModelProto, data: Arrays) -> float:
    want, have = run(model, data)[0], run(other, data)[0]
    return float(((have - want) ** 2).mean() / want.var())


def with_island(model: onnx.ModelProto, *inside: str, per_channel: bool = False) -> onnx.ModelProto:
    """The Q/DQ model with these tensors in float."""
    chosen = QdqOptions(without_range=frozenset(inside), per_channel=per_channel, op_types=(*DEFAULT_OP_TYPES, "Log"))
    model = onnx.shape_inference.infer_shapes(model)  # only tensors whose type is known are quantized
    ranges = {name: (-8.0, 8.0) for name in calibration_tensors(model, chosen) if name not in inside}
    return qdq_model(model, ranges, {}, chosen).model


ISLAND = ("g", "f", "h", "p", "q")


def test_the_harm_of_a_weight_in_an_island_is_what_its_rounding_does_alone() -> None:
    """The oracle is the float model with the rounded weight in it."""
    model = spectrum(3.0)
    data = samples(model, 32)
    result = with_island(model, *ISLAND)
    found = weights_in_float(model, result, ([data], Engine(1)), room=1e9, runs=100)
    assert "second_w" in found
    assert "head_w" not in found  # its input is quantized
    alone = onnx.ModelProto()
    alone.CopyFrom(model)
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    codes, scale = values["second_w_quantized"].astype(np.float32), values["second_w_scale"]
    for tensor in alone.graph.initializer:
        if tensor.name == "second_w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(codes * scale, tensor.name))
    assert found["second_w"] == pytest.approx(error(model, alone, data), rel=1e-3)


def test_weights_take_no_more_room_than_there_is() -> None:
    model = spectrum(3.0)
    on = [samples(model, 32)], Engine(1)
    result = with_island(model, *ISLAND)
    assert not weights_in_float(model, result, on, room=16 * 24 - 1, runs=100).keys() & {"second_w"}
    assert "second_w" in weights_in_float(model, result, on, room=16 * 24 + 16 * 16, runs=100)


def test_a_weight_that_does_little_harm_keeps_its_integers() -> None:
    """The first one is nearly the identity."""
    model = spectrum(3.0)
    result = with_island(model, "x", *ISLAND)
    assert list(weights_in_float(model, result, ([samples(model, 32)], Engine(1)), room=1e9, runs=100)) == ["second_w"]


@pytest.mark.parametrize("quantized_one", ["f", "h"])
def test_a_layer_that_reads_or_makes_a_quantized_activation_is_in_no_island(quantized_one: str) -> None:
    model = spectrum(3.0)
    result = with_island(model, *(name for name in ISLAND if name != quantized_one))
    assert not weights_in_float(model, result, ([samples(model, 32)], Engine(1)), room=1e9, runs=100)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_weight_without_range_is_a_float_in_the_quantized_model(per_channel: bool) -> None:
    model = spectrum(3.0)
    result = with_island(model, *ISLAND, "second_w", per_channel=per_channel)
    (second,) = [node for node in result.graph.node if node.name == "second"]
    assert second.input[1] == "second_w"
    (first,) = [node for node in result.graph.node if node.name == "first"]
    assert first.input[1] != "first_w"


def test_a_quantized_model_keeps_harmful_weights_of_islands_in_float_and_says_so() -> None:
    model = spectrum(3.0)
    data, unseen = samples(model, 64), samples(model, 200, seed=9)
    result, quantizer = quantized(model, data, MaxFloatShare=0.9, algo_config=[AdaRoundConfig()])
    assert "second_w" in {name for node in result.graph.node if node.name == "second" for name in node.input}
    notes = "\n".join(quantizer.report.notes)
    assert "in float (MaxFloatShare): all that reads them computes with activations in float" in notes
    assert "tensor 'second_w' stays in float" in notes
    assert error(model, result, unseen) < 0.05
    assert any(layer.node == "second" and layer.reason for layer in quantizer.report.skipped)
