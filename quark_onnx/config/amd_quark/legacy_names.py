"""The enums of scripts for AMD Quark from before `CalibMethod` and the specs."""

from __future__ import annotations

import enum

__all__ = [
    "ExtendedCalibrationMethod",
    "ExtendedQuantFormat",
    "ExtendedQuantType",
    "Int16Method",
    "LayerWiseMethod",
    "PowerOfTwoMethod",
    "VitisQuantFormat",
    "VitisQuantType",
]


class PowerOfTwoMethod(enum.Enum):
    """How ranges are chosen where scales are powers of two: `CalibMethod` beside `ScaleType.PowerOf2` says it now."""

    NonOverflow = 0
    MinMSE = 1


class Int16Method(enum.Enum):
    """`CalibMethod.MinMax` beside `ScaleType.Int16`."""

    MinMax = 0


class LayerWiseMethod(enum.Enum):
    """`CalibMethod.LayerwisePercentile`."""

    LayerWisePercentile = 0


class ExtendedCalibrationMethod(enum.Enum):
    """`CalibMethod.MinMSE`."""

    MinMSE = 0


class ExtendedQuantType(enum.Enum):
    """The types of tensors; a spec (`Int8Spec`, ...) says it now."""

    QInt8 = 1
    QUInt8 = 2
    QInt16 = 3
    QUInt16 = 4
    QInt32 = 5
    QUInt32 = 6
    QFloat16 = 7
    QBFloat16 = 8
    QBFP = 9
    QMX = 10


class ExtendedQuantFormat(enum.Enum):
    """The form of the quantized model, which is QDQ here."""

    QOperator = 0
    QDQ = 1


VitisQuantType = ExtendedQuantType
VitisQuantFormat = ExtendedQuantFormat
