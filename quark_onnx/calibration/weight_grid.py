"""The quantizer of a weight."""

from __future__ import annotations

from dataclasses import dataclass

from quark.onnx.config.spec import ScaleType

__all__ = ["WeightGrid"]


@dataclass(frozen=True)
class WeightGrid:
    """The integers of the weights, how many scales they share, and which values scales have.

    Attributes:
        block: one scale per output channel and block of so many inputs, in MatMul and Gemm; 0: not.
    """

    qmin: int
    qmax: int
    symmetric: bool
    per_channel: bool
    block: int = 0
    scales: ScaleType = ScaleType.Float32
