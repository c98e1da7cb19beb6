"""The number formats that a tensor can be quantized to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataType", "Int8", "UInt8"]


@dataclass(frozen=True, repr=False)
class DataType:
    """An integer format.

    Attributes:
        name: its name in this package, for example "Int8".
        bits: its width.
        signed: whether it is two's complement.
    """

    name: str
    bits: int
    signed: bool

    @property
    def qmin(self) -> int:
        """The least integer. A symmetric tensor's calibration may leave it unused (Int8: -127)."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """The greatest integer."""
        return self.qmin + (1 << self.bits) - 1

    def __repr__(self) -> str:
        return self.name


Int8 = DataType("Int8", bits=8, signed=True)
UInt8 = DataType("UInt8", bits=8, signed=False)
