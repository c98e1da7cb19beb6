"""The scale of a weight from the weight alone: CalibMethod.MinMSE and CalibMethod.Percentile. Of biases too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.layers.weight_layers import WeightLayer
from quark.onnx.qdq.blockwise import input_axes
from quark.onnx.qdq.per_tensor_weights import one_scale_weights
from quark.onnx.qdq.weight_params import WeightParams

__all__ = ["WeightRange", "weight_scales"]

_BINS = 4096

Params = tuple[NDArray[np.float32], NDArray[np.int32]]


@dataclass(frozen=True)
class WeightRange:
    """How the range of a weight follows from its values (docs/numerics.md).

    Attributes:
        grid: the quantizer.
        percentile: of |w| that the range holds, in percent; None: the range with the least squared error.
    """

    grid: WeightGrid
    percentile: float | None = None

    def of(self, rows: NDArray[np.float32], pool: _core.ThreadPool, *, per_channel: bool) -> Params:
        """Scale and zero point of each row, or of all together."""
        grid = self.grid
        if self.percentile is None:
            return _core.weight_scale(
                rows, qmin=grid.qmin, qmax=grid.qmax, symmetric=grid.symmetric, per_channel=per_channel,
                scale_type=grid.scales.name, pool=pool,
            )  # fmt: skip
        scales, zero_points = [], []
        for row in rows if per_channel else [rows]:
            ranges = _core.ValueRanges(1, _BINS)
            ranges.update([row])
            limit, (low, high) = ranges.percentile(0, self.percentile), ranges.min_max(0)
            scale, zero_point = _core.affine_from_range(
                max(low, -limit), min(high, limit), grid.qmin, grid.qmax, grid.symmetric, grid.scales.name
            )
            scales.append(scale)
            zero_points.append(zero_point)
        return np.array(scales, np.float32), np.array(zero_points, np.int32)


def weight_scales(
    model: onnx.ModelProto, layers: Iterable[WeightLayer], ranges: Mapping[str, WeightRange], *, threads: int
) -> dict[str, WeightParams]:
    """Parameters of the weights of linear layers, and of biases, as far as `ranges` has them."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    blocked, one_scale = input_axes(model.graph), one_scale_weights(model)
    pool = _core.ThreadPool(threads)
    found = {}
    for layer in layers:
        if layer.weight in ranges and not layer.attributes.normalizes:
            chosen = ranges[layer.weight]
            rows = layer.layout.rows(onnx.numpy_helper.to_array(constants[layer.weight]).astype(np.float32))
            per_channel = chosen.grid.per_channel and layer.weight not in one_scale
            if chosen.grid.block and layer.weight in blocked:
                found[layer.weight] = _of_blocks(chosen, rows, 1 - layer.channel_axis, pool)
            else:
                params = chosen.of(rows, pool, per_channel=per_channel)
                found[layer.weight] = WeightParams(*params, layer.channel_axis if per_channel else None)
        if layer.bias is not None and layer.bias in ranges:
            chosen = ranges[layer.bias]
            bias = onnx.numpy_helper.to_array(constants[layer.bias]).astype(np.float32).reshape(-1)
            rows = bias.reshape(-1, 1) if chosen.grid.per_channel else bias.reshape(1, -1)
            params = chosen.of(np.ascontiguousarray(rows), pool, per_channel=chosen.grid.per_channel)
            found[layer.bias] = WeightParams(*params, 0 if chosen.grid.per_channel else None)
    return found


def _of_blocks(chosen: WeightRange, rows: NDArray[np.float32], axis: int, pool: _core.ThreadPool) -> WeightParams:
    """One scale per row and block of inputs, which lie on that axis of the weight."""
    size = chosen.grid.block
    blocks = (np.ascontiguousarray(rows[:, begin : begin + size]) for begin in range(0, rows.shape[1], size))
    found = [chosen.of(block, pool, per_channel=True) for block in blocks]
    scale, zero_point = (np.stack(values, axis=axis) for values in zip(*found, strict=True))
    return WeightParams(scale, zero_point, axis, size)
