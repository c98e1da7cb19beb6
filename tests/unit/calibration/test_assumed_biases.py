"""A plain model's biases make up for what rounding weights does to the mean outputs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Arrays, build, run

from quark.onnx import (
    CalibMethod,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
)


def perceptron(**changes: np.ndarray) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    tensors = {
        "w": random.normal(0, 1, (12, 5)), "b": random.normal(0, 1, 5),
        "v": random.normal(0, 1, (5, 3)), "c": random.normal(0, 1, 3),
    } | changes  # fmt: skip
    return build(
        "(float[N,12] x) => (float[N,3] y) { [first] h = Gemm(x, w, b) [second] y = Gemm(h, v, c) }",
        **tensors,
    )


def convolution(*, group: int = 2) -> onnx.ModelProto:
    random = np.random.default_rng(1)
    return build(
        f"(float[N,4,6,6] x) => (float[N,6,4,4] y) {{ [first] y = Conv<group={group}>(x, w, b) }}",
        w=random.normal(0, 1, (6, 4 // group, 3, 3)),
        b=random.normal(0, 1, 6),
    )


def data(model: onnx.ModelProto, mean: float = 3.0) -> Arrays:
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return {"x": np.float32(np.random.default_rng(2).normal(mean, 1, (64, *shape)))}


def plain(model: onnx.ModelProto, arrays: Arrays, weight: object) -> dict[str, np.ndarray]:
    """The Q/DQ model's constants, dequantized, by the names that the float model has for them."""
    result = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=weight))).quantize_model(model, None, arrays)
    inputs = {value.name: value for value in result.graph.input}
    named = [node for node in result.graph.node if node.op_type == "DequantizeLinear"]
    constants = {tensor.name for tensor in result.graph.initializer}
    wanted = [node for node in named if node.input[0] in constants]
    for node in wanted:
        result.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    feeds = {name: array for name, array in arrays.items() if name in inputs}
    outputs = run(result, feeds)[-len(wanted) :]
    return {node.input[0].removesuffix("_quantized"): value for node, value in zip(wanted, outputs, strict=True)}


@pytest.mark.parametrize(
    ("weight", "half_a_step"),
    [(Int8Spec(), 2e-3), (Int4Spec(), 0.01), (Int4Spec(quant_granularity=QuantGranularity.Channel), 0.01)],
    ids=["int8", "int4", "int4 per channel"],
)
def test_of_gemm(weight: object, half_a_step: float) -> None:
    model = perceptron()
    arrays = data(model)
    found = plain(model, arrays, weight)
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shift = arrays["x"].astype(np.float64).mean(axis=0) @ (found["w"].astype(np.float64) - given["w"])
    assert np.abs(shift).max() > 5 * half_a_step
    np.testing.assert_allclose(found["b"], given["b"] - shift, atol=half_a_step)


@pytest.mark.parametrize("group", [1, 2])
def test_of_conv(group: int) -> None:
    model = convolution(group=group)
    arrays = data(model)
    found = plain(model, arrays, Int8Spec())
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rounding = onnx.ModelProto()
    rounding.CopyFrom(model)
    for tensor in rounding.graph.initializer:
        value = found["w"] - given["w"] if tensor.name == "w" else np.zeros(6, np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
    shift = run(rounding, arrays)[0].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(found["b"], given["b"] - shift, atol=3e-3)


def test_a_scale_that_was_not_chosen_so_moves_no_bias() -> None:
    model = perceptron()
    found = plain(model, data(model), Int8Spec(calibration_method=CalibMethod.MinMax))
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_allclose(found["b"], given["b"], atol=2e-3)


def test_the_float_model_is_not_changed_and_finetuning_aims_at_it() -> None:
    model = perceptron()
    before = model.SerializeToString()
    plain(model, data(model), Int4Spec())
    assert model.SerializeToString() == before
