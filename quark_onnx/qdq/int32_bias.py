"""An int32 bias beside the products that it is added to, and the weight scale that it needs.

A bias is quantized with zero point 0 and the scale input_scale * weight_scale (ONNX's QLinearConv). Integer kernels add
it to the sum of K products in int32, which wraps around: onnxruntime's do (MLAS: QLinearConv, QGemm and MatMulInteger).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bias_limit", "costs_little", "scales_for_bias"]

_MOST = 2**31 - 1
_MARGIN = 1.0001  # for the rounding of scales to float32; onnxruntime's, of a channel in float32 as there
_LEAST_SCALE = float(np.finfo(np.float32).tiny)  # products of smaller ones lose their digits, and then are 0


def bias_limit(inputs: int, input_reach: int, weight_reach: int) -> int:
    """The largest |bias| that leaves room for a layer's products.

    With it |bias + sum((x - x_zero) * (w - w_zero))| <= 2**31 - 1 whatever the data. Where products could fill more
    than half of the integers (K > 33000 with 8 bits), which no real data comes near to, half is left to the bias.

    Args:
        inputs: K, those that one output sees.
        input_reach: the largest |x - x_zero|: 255 at most with 8 bits. 0 of 16 bits and floats: onnxruntime has no
            integer kernels for them, and computes such a layer in float.
        weight_reach: the largest |w - w_zero|: 127 of symmetric int8.
    """
    return _MOST - min(inputs * input_reach * weight_reach, _MOST // 2)


def scales_for_bias(
    bias: NDArray[np.float32], input_scale: float, scale: NDArray[np.float32], limit: int
) -> NDArray[np.float64]:
    """The weight scales, none smaller than they were, with which a bias is at most `limit` and its scale no denormal.

    Args:
        bias: (..., outputs), or one value for all outputs.
        scale: () or (outputs,), positive.
    """
    if scale.ndim == 0 or bias.size == 1:
        largest = _MARGIN * np.abs(bias.astype(np.float64)).max()
    else:
        largest = (_MARGIN * np.abs(bias).reshape(-1, scale.size).max(axis=0)).astype(np.float64)
    real = scale.astype(np.float64)
    needed = np.maximum(largest / limit, _MARGIN * _LEAST_SCALE)
    return np.asarray(real * np.maximum(needed / (input_scale * real), 1))


def costs_little(
    rows: NDArray[np.float32],
    scale: NDArray[np.float32],
    larger: NDArray[np.float64],
    input_power: float,
    output_step: float,
) -> bool:
    """Whether larger weight scales add little to the error of a layer's output.

    That is, for each output, where its scale is at most twice as large, or the rounding of its weights makes less error
    than a thousandth of what the weights make at all, or than a quarter of the output's own rounding, step**2 / 12.

    Args:
        rows: (outputs, K), the float weight.
        scale, larger: () or (outputs,).
        input_power: of one input, the largest mean square that there can be.
        output_step: the scale of the layer's output; 0 where it is not quantized.
    """
    if (larger > float(np.finfo(np.float32).max)).any():
        return False
    much_larger = larger > 2 * scale.astype(np.float64)
    power = np.square(rows, dtype=np.float64).sum(axis=1)  # weights that become 0 lose no more than they were
    error = np.minimum(rows.shape[1] * np.square(larger) / 12, power) * input_power
    enough = np.maximum(power * input_power / 1000, output_step**2 / 48)
    return bool((~much_larger | (error <= enough)).all())
