"""The number formats that a tensor can be quantized to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DATA_TYPES", "DataType", "Int2", "Int4", "Int8", "Int16", "UInt2", "UInt4", "UInt8", "UInt16"]


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
        """The least integer."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def symmetric_qmin(self) -> int:
        """The least integer of a symmetric weight, as onnxruntime's quantizer has it.

        Signed types of 8 bits and more leave the least one out, so that both ends are equally far from 0 (Int8: -127).
        Narrower ones have none to spare.
        """
        return self.qmin + 1 if self.signed and self.bits >= 8 else self.qmin

    @property
    def qmax(self) -> int:
        """The greatest integer."""
        return self.qmin + (1 << self.bits) - 1

    def __repr__(self) -> str:
        return self.name


Int2 = DataType("Int2", bits=2, signed=True)
UInt2 = DataType("UInt2", bits=2, signed=False)
Int4 = DataType("Int4", bits=4, signed=True)
UInt4 = DataType("UInt4", bits=4, signed=False)
Int8 = DataType("Int8", bits=8, signed=True)
UInt8 = DataType("UInt8", bits=8, signed=False)
Int16 = DataType("Int16", bits=16, signed=True)
UInt16 = DataType("UInt16", bits=16, signed=False)

# Those that specs can have, by name.
DATA_TYPES = {kind.name: kind for kind in (Int4, UInt4, Int8, UInt8, Int16, UInt16)}
