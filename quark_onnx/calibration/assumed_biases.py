"""The biases that weight scales were chosen with.

A scale is scored on centred inputs, as the bias takes up the mean: rounding a weight by D shifts the output by D E[x].
The bias that makes up for it, b - D E[x], is what the score assumed (docs/numerics.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.graph.editor import GraphEditor
from quark.onnx.layers.weight_layers import weight_layers
from quark.onnx.qdq.weight_params import WeightParams

__all__ = ["bias_shifts", "with_assumed_biases"]


def bias_shifts(
    model: onnx.ModelProto,
    weights: Mapping[str, WeightParams],
    grid_of: Callable[[str], WeightGrid | None],
    mean_inputs: Mapping[str, NDArray[np.float64]],
) -> dict[str, list[float]]:
    """What rounding the weights of layers adds to their mean outputs, D E[x], by bias initializer.

    Left out are biases and weights that several nodes read, biases that are no vector of one value for each output, and
    those that Gemm scales.

    Args:
        model: a prepared float model.
        weights: parameters of the weights, by initializer.
        grid_of: the integers of a weight.
        mean_inputs: the mean row (groups, K) of layers, by node name.
    """
    editor, found = GraphEditor(model.graph), {}
    for layer in weight_layers(model):
        params, grid, mean = weights.get(layer.weight), grid_of(layer.weight), mean_inputs.get(layer.node_name)
        if layer.bias is None or params is None or grid is None or mean is None or _is_scaled(layer.attributes):
            continue
        if len(editor.readers(layer.bias)) != 1 or len(editor.readers(layer.weight)) != 1:
            continue
        weight = numpy_helper.to_array(editor.initializers[layer.weight])
        rows = layer.layout.rows(_rounding(weight, params, grid))
        if tuple(editor.initializers[layer.bias].dims) == (len(rows),):
            shift = np.einsum("gok,gk->go", rows.reshape(len(mean), -1, rows.shape[1]), mean)
            found[layer.bias] = shift.reshape(-1).tolist()
    return found


def with_assumed_biases(model: onnx.ModelProto, shifts: Mapping[str, Sequence[float]]) -> onnx.ModelProto:
    """The float model with biases that make up for these shifts; itself where there are none.

    Args:
        model: not changed.
        shifts: by bias initializer, as `bias_shifts` gives them.
    """
    if not shifts:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for bias in result.graph.initializer:
        if bias.name in shifts:
            values = numpy_helper.to_array(bias) - np.array(shifts[bias.name])
            bias.CopyFrom(numpy_helper.from_array(values.astype(np.float32), bias.name))
    return result


def _is_scaled(attributes: object) -> bool:
    return getattr(attributes, "alpha", 1.0) != 1.0 or getattr(attributes, "beta", 1.0) != 1.0


def _rounding(weight: NDArray[np.float32], params: WeightParams, grid: WeightGrid) -> NDArray[np.float64]:
    """What quantizing a weight adds to each of its values."""
    scale, zero_point = (_spread(values, weight.shape, params) for values in (params.scale, params.zero_point))
    offset = zero_point.astype(np.float64)
    codes = np.clip(np.rint(weight / scale) + offset, grid.qmin, grid.qmax)
    found: NDArray[np.float64] = (codes - offset) * scale.astype(np.float64) - weight
    return found


def _spread(values: NDArray[Any], shape: tuple[int, ...], params: WeightParams) -> NDArray[Any]:
    """One scale, one for each channel, or one for each block, for every value of a weight."""
    if params.axis is None:
        return values.reshape((1,) * len(shape))
    if params.block:
        return np.repeat(values, params.block, params.axis).take(range(shape[params.axis]), params.axis)
    return values.reshape([-1 if axis == params.axis else 1 for axis in range(len(shape))])
