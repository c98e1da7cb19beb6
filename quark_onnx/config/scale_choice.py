"""How the scale of a tensor is chosen: from which range, out of which values, and what shares it."""

from __future__ import annotations

import enum

__all__ = ["CalibMethod", "QuantGranularity", "ScaleType"]


class _Named(enum.Enum):
    """An enum whose members print as they are written in code."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}.{self.name}"


class CalibMethod(_Named):
    """How the value range of a tensor is chosen (docs/numerics.md has the formulas).

    Members:
        MinMax: all values seen.
        MinMSE: the least mean squared error of the values.
        Percentile: 99.999 % of the values, or as the extra option Percentile says.
        Entropy: the least divergence between the histograms before and after (TensorRT's method).
        LayerwisePercentile: of some percentiles the one with the least error, for each tensor.
        Distribution: as far on both sides of 0 as the farthest value.
        MinOutputMSE: the least error of the layer's output. For weights; not in AMD Quark.
    """

    MinMax = enum.auto()
    MinMSE = enum.auto()
    Percentile = enum.auto()
    Entropy = enum.auto()
    LayerwisePercentile = enum.auto()
    Distribution = enum.auto()
    MinOutputMSE = enum.auto()


class ScaleType(_Named):
    """Which values a scale can have.

    Members:
        Float32: any float32.
        PowerOf2: powers of two.
        Int16: an int16 times a power of two.
    """

    Float32 = enum.auto()
    PowerOf2 = enum.auto()
    Int16 = enum.auto()


class QuantGranularity(_Named):
    """What shares one scale and zero point.

    Members:
        Tensor: the whole tensor.
        Channel: one output channel of a weight.
        Group: some neighbouring inputs of an output channel (the extra option BlockSize says how many), as ONNX's
            block_size has it. For weights of MatMul and Gemm; in other layers it is Channel.
    """

    Tensor = enum.auto()
    Channel = enum.auto()
    Group = enum.auto()
