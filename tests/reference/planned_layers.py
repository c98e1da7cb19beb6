"""What the plan says of a layer, put together again: output = factor * (W x) + bias."""

from __future__ import annotations

import numpy as np
import onnx
from reference.conv_rows import conv_of, output_rows
from reference.inner_tensors import inner_tensors
from small_models import Arrays

from quark.onnx.plan.types import LayerPlan, QuantizedWeight


def rows_of(layer: LayerPlan, x: np.ndarray) -> np.ndarray:
    """(groups, rows, K)."""
    return x.reshape(1, -1, x.shape[-1]) if layer.conv is None else conv_of(layer.conv).rows(x)


def of_every_weight(weight: QuantizedWeight, values: np.ndarray) -> np.ndarray:
    """Scales or zero points, as (outputs, K)."""
    outputs, inputs = weight.rows.shape
    blocks = values.reshape(outputs, -1)
    return np.repeat(blocks, inputs // blocks.shape[1], axis=1)


def assert_is_its_plan(layer: LayerPlan, model: onnx.ModelProto, quantized: onnx.ModelProto, inputs: Arrays) -> None:
    """The quantized layer's output is made of the plan's W, x and bias, as they are arranged; W is the float weight,
    rounded."""
    outputs = {node.name: node.output[0] for node in quantized.graph.node}
    x, y = inner_tensors(quantized, inputs, [layer.input.tensor, outputs[layer.node]]).values()
    assert inner_tensors(model, inputs, [layer.target])[layer.target].shape == y.shape
    if x.dtype != np.float32:
        x = (x.astype(np.float64) - layer.input.zero_point) * layer.input.scale
    x, y = layer.arrangement.input(x), layer.arrangement.output(y)
    rows, weight = rows_of(layer, x.astype(np.float64)), layer.weight
    scale, zero_point = (of_every_weight(weight, values) for values in (weight.scale, weight.zero_point))
    real = scale.astype(np.float64) * (weight.rows_q - zero_point)
    columns = real.reshape(layer.groups, -1, real.shape[1]).transpose(0, 2, 1) * layer.factor
    bias = np.zeros(len(real)) if layer.bias is None else layer.bias.real
    expected = rows @ columns + bias.reshape(layer.groups, 1, -1)
    found = output_rows(y, layer.groups) if layer.conv else y.reshape(1, -1, y.shape[-1])
    terms = (np.abs(rows) @ np.abs(columns)).max() + np.abs(bias).max()  # which may cancel out
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * terms)
    steps = weight.rows / scale + zero_point
    assert np.abs(weight.rows_q - np.clip(steps, weight.qmin, weight.qmax)).max() <= 1
