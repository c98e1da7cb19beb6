"""ONNX QuantizeLinear and DequantizeLinear, and how onnxruntime.quantization makes their parameters."""

from __future__ import annotations

import numpy as np


def quantize(x: np.ndarray, scale: float, zero_point: int, qmin: int, qmax: int) -> np.ndarray:
    """Divide in float32, round half to even, shift, saturate."""
    with np.errstate(over="ignore"):
        return np.clip(np.rint(x / np.float32(scale)) + np.float32(zero_point), qmin, qmax).astype(np.int32)


def dequantize(q: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return (q.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def fake_quant(x: np.ndarray, scale: float, zero_point: int, qmin: int, qmax: int) -> np.ndarray:
    return dequantize(quantize(x, scale, zero_point, qmin, qmax), scale, zero_point)


def rounded_up(scale: float, scale_type: str) -> float:
    """The least number of a kind that is no less, by trying: 2^n, or m 2^n with 2^14 <= m < 2^15."""
    if scale_type == "Float32":
        return scale
    mantissas = [1] if scale_type == "PowerOf2" else range(2**14, 2**15)
    n = -200
    while mantissas[-1] * 2.0**n < scale:
        n += 1
    return next(m * 2.0**n for m in mantissas if m * 2.0**n >= scale)


def affine_from_range(
    rmin: float, rmax: float, qmin: int, qmax: int, *, symmetric: bool, scale_type: str = "Float32"
) -> tuple[float, int]:
    """(scale, zero_point) of a range that is widened to hold 0."""
    rmin, rmax = min(rmin, 0.0), max(rmax, 0.0)
    if symmetric:
        rmax = max(-rmin, rmax)
        rmin = -rmax
    scale = (rmax - rmin) / (qmax - qmin)
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    scale = rounded_up(scale, scale_type)
    zero_point = (qmin + qmax) / 2 if symmetric else qmin - rmin / scale
    return float(np.float32(scale)), round(zero_point)
