"""Names that the tensors and nodes which quantization adds would get: the model computes what it does under others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Reader, Weights, build, run, samples

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.graph.editor import rename_tensors

SUFFIXES = (
    "scale", "zero_point", "quantized", "quantized_scale", "quantized_zero_point", "QuantizeLinear_Output",
    "QuantizeLinear_Input", "DequantizeLinear_Output", "DequantizeLinear_Input",
)  # fmt: skip
# Inputs x and z, a weight, a bias, inner tensors, what a body makes, and outputs, one of them read by a node.
TENSORS = ("x", "z", "w", "b", "h", "r", "c", "inside", "y", "v")


def model() -> onnx.ModelProto:
    return build(
        """(float[N,3,6,6] x, float[N,4,4,4] z) => (float[N,4,4,4] y, float[N,4,4,4] v) {
            [conv] h = Conv(x, w, b)
            [relu] r = Relu(h)
            s = ReduceSum<keepdims=0>(z)
            c = Greater(s, zero)
            [add] y = Add(r, z)
            [tanh] t = Tanh(y)
            [if] v = If(c) <
                then_branch = yes () => (float[N,4,4,4] o) { inside = Sin(t) o = Neg(inside) },
                else_branch = no () => (float[N,4,4,4] p) { p = Cos(r) }
            >
        }""",
        w=Weights(0).conv(4, 3, 3, 3), b=Weights(1).bias(4), zero=0.0,
    )  # fmt: skip


def quantized_outputs(
    given: onnx.ModelProto, inputs: tuple[str, str], **options: list[AdaRoundConfig]
) -> list[np.ndarray]:
    """What it computes as it is defined; that it is the same optimised is checked."""
    data = dict(zip(inputs, samples(model(), 40).values(), strict=True))
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), **options))
    result = quantizer.quantize_model(given, None, Reader(data))
    assert not [note for note in quantizer.report.notes if "preparation" in note]
    assert [v.name for v in result.graph.input] == list(inputs)
    assert [v.name for v in result.graph.output] == [v.name for v in given.graph.output]
    outputs = run(result, data)
    for plain, optimised in zip(outputs, run(result, data, optimise=True), strict=True):
        assert np.abs(plain - optimised).max() < 0.05 * np.ptp(plain)
    return outputs


@pytest.fixture(scope="module")
def usual() -> list[np.ndarray]:
    return quantized_outputs(model(), ("x", "z"))


def renamed(**names: str) -> onnx.ModelProto:
    result = model()
    rename_tensors(result.graph, names)
    return result


@pytest.mark.parametrize("first", TENSORS)
def test_a_tensor_with_the_name_of_what_is_added_for_another(first: str, usual: list[np.ndarray]) -> None:
    shift = TENSORS.index(first)
    others = (tensor for tensor in TENSORS if tensor != first)
    for second, suffix in zip(others, SUFFIXES[shift % 9 :] + SUFFIXES[: shift % 9], strict=True):
        name = f"{first}_{suffix}"
        inputs = ("x", name) if second == "z" else (name, "z") if second == "x" else ("x", "z")
        have = quantized_outputs(renamed(**{second: name}), inputs)
        for one, other in zip(usual, have, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=f"{second} is called {name}")


def test_names_that_clash_when_they_are_mended(usual: list[np.ndarray]) -> None:
    """A chain of names, and those that a tensor would get to get out of the way."""
    names = {"x": "a", "z": "a_scale", "h": "a_scale_scale", "r": "a_copy", "c": "a_copy_scale", "y": "a_scale_copy",
             "w": "a_quantized", "b": "a_quantized_scale", "v": "a_scale_scale_", "inside": "a_zero_point"}  # fmt: skip
    for one, other in zip(usual, quantized_outputs(renamed(**names), ("a", "a_scale")), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nodes_with_the_names_of_those_that_are_added(usual: list[np.ndarray]) -> None:
    given = model()
    names = ("x_QuantizeLinear", "w_DequantizeLinear", "b_DequantizeLinear", "x_QuantizeLinear_0", "r_QuantizeLinear")
    for node, name in zip(given.graph.node, names, strict=False):
        node.name = name
    for one, other in zip(usual, quantized_outputs(given, ("x", "z")), strict=True):
        np.testing.assert_array_equal(one, other)


def test_finetuned() -> None:
    algorithms = [AdaRoundConfig()]
    want = quantized_outputs(model(), ("x", "z"), algo_config=algorithms)
    have = quantized_outputs(
        renamed(y="x_scale", w="b_quantized", h="x_zero_point"), ("x", "z"), algo_config=algorithms
    )
    for one, other in zip(want, have, strict=True):
        np.testing.assert_array_equal(one, other)
