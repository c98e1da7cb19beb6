"""The scales of a weight, in the order of its rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.layers.weight_layers import WeightLayer

__all__ = ["scales_in_rows"]

_Parameters = tuple[NDArray[np.float32], NDArray[np.int32]]


def scales_in_rows(
    layer: WeightLayer, dequantize: onnx.NodeProto, scale: NDArray[np.float32], zero_point: NDArray[Any]
) -> _Parameters | None:
    """Scale and zero point of the DequantizeLinear of a layer's weight as `QuantizedWeight` has them.

    Returns:
        (outputs,) of one scale per tensor or output channel. (outputs, blocks) of ONNX's blockwise scales; these blocks
        divide K, and so may be parts of theirs. None for any other scales.
    """
    given = {item.name: item.i for item in dequantize.attribute}
    axis = given.get("axis", 1) % max(len(layer.weight_shape), 1)
    if given.get("block_size", 0):
        return _of_blocks(layer, axis, given["block_size"], scale, zero_point)
    if scale.size not in (1, layer.channels) or (scale.size > 1 and axis != layer.channel_axis):
        return None
    groups = layer.layout.outputs // layer.channels  # those of a ConvTranspose share the scales of its channels; else 1
    s = np.tile(np.broadcast_to(scale.reshape(-1), layer.channels), groups).astype(np.float32, copy=False)
    z = np.tile(np.broadcast_to(zero_point.reshape(-1), layer.channels), groups).astype(np.int32, copy=False)
    return s, z


def _of_blocks(
    layer: WeightLayer, axis: int, block: int, scale: NDArray[np.float32], zero_point: NDArray[Any]
) -> _Parameters | None:
    shape = list(layer.weight_shape)
    shape[axis] = math.ceil(shape[axis] / block)
    if list(scale.shape) != shape or scale.shape != zero_point.shape:
        return None
    columns = range(layer.weight_shape[axis])
    s = layer.layout.rows(np.repeat(scale, block, axis=axis).take(columns, axis))
    z = layer.layout.rows(np.repeat(zero_point.astype(np.int32), block, axis=axis).take(columns, axis))
    changes = (s[:, 1:] != s[:, :-1]).any(axis=0) | (z[:, 1:] != z[:, :-1]).any(axis=0)
    run = math.gcd(s.shape[1], *(np.flatnonzero(changes) + 1).tolist())
    if run == s.shape[1]:
        return s[:, 0].copy(), z[:, 0].copy()
    return np.ascontiguousarray(s[:, ::run]), np.ascontiguousarray(z[:, ::run])
