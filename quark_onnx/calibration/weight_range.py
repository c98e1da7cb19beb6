"""The scale of a weight from the weight alone: CalibMethod.MinMSE and CalibMethod.Percentile."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration.calibrate import WeightGrid
from quark.onnx.graph.insert_qdq import WeightParams
from quark.onnx.graph.weight_layers import ConvAttributes, GemmAttributes, WeightLayer

__all__ = ["weight_scales"]

_BINS = 4096


def weight_scales(
    model: onnx.ModelProto, layers: Iterable[WeightLayer], grid: WeightGrid, *, percentile: float | None, threads: int
) -> dict[str, WeightParams]:
    """Parameters of the weights of Conv, ConvTranspose, Gemm and MatMul.

    Args:
        percentile: of |w| that the range holds, in percent; None: the range with the least squared error.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    pool = _core.ThreadPool(threads)
    found = {}
    for layer in layers:
        if layer.weight in found or not isinstance(layer.attributes, (ConvAttributes, GemmAttributes)):
            continue
        rows = layer.layout.rows(onnx.numpy_helper.to_array(constants[layer.weight]).astype(np.float32))
        # As `insert_qdq`: one scale where the rows are not the channels of one axis of a matrix or kernel.
        stack = layer.op_type == "MatMul" and len(layer.weight_shape) > 2
        per_channel = grid.per_channel and layer.channels == len(rows) and not stack
        if percentile is None:
            scale, zero_point = _core.weight_scale(
                rows, qmin=grid.qmin, qmax=grid.qmax, symmetric=grid.symmetric, per_channel=per_channel,
                scale_type=grid.scales.name, pool=pool,
            )  # fmt: skip
        else:
            scale, zero_point = _of_percentile(rows if per_channel else rows.reshape(1, -1), grid, percentile, pool)
        found[layer.weight] = WeightParams(scale, zero_point, layer.channel_axis if per_channel else None)
    return found


def _of_percentile(
    rows: NDArray[np.float32], grid: WeightGrid, percentile: float, pool: _core.ThreadPool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    scales, zero_points = [], []
    for row in rows:
        ranges = _core.ValueRanges(1, _BINS)
        ranges.update([row], pool)
        limit, (low, high) = ranges.percentile(0, percentile), ranges.min_max(0)
        scale, zero_point = _core.affine_from_range(
            max(low, -limit), min(high, limit), grid.qmin, grid.qmax, grid.symmetric, grid.scales.name
        )
        scales.append(scale)
        zero_points.append(zero_point)
    return np.array(scales, np.float32), np.array(zero_points, np.int32)
