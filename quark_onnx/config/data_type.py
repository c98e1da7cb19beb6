"""The number formats that a tensor can be quantized to."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BFP16",
    "DATA_TYPES",
    "MX4",
    "MX6",
    "MX9",
    "MXFP4E2M1",
    "MXFP6E2M3",
    "MXFP6E3M2",
    "MXFP8E4M3",
    "MXFP8E5M2",
    "BFloat16",
    "DataType",
    "Float16",
    "Int2",
    "Int4",
    "Int8",
    "Int16",
    "Int32",
    "MXInt8",
    "UInt2",
    "UInt4",
    "UInt8",
    "UInt16",
    "UInt32",
]


@dataclass(frozen=True, repr=False)
class DataType:
    """A number format.

    Attributes:
        name: its name in this package, for example "Int8".
        bits: its width; 0 of the formats whose numbers have an exponent, their own or that of their block, which
            exist as names only.
        signed: whether it is two's complement.
    """

    name: str
    bits: int = 0
    signed: bool = True

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
Int32 = DataType("Int32", bits=32, signed=True)
UInt32 = DataType("UInt32", bits=32, signed=False)
Float16 = DataType("Float16")
BFloat16 = DataType("BFloat16")
BFP16 = DataType("BFP16")
MX4 = DataType("MX4")
MX6 = DataType("MX6")
MX9 = DataType("MX9")
MXFP4E2M1 = DataType("MXFP4E2M1")
MXFP6E2M3 = DataType("MXFP6E2M3")
MXFP6E3M2 = DataType("MXFP6E3M2")
MXFP8E4M3 = DataType("MXFP8E4M3")
MXFP8E5M2 = DataType("MXFP8E5M2")
MXInt8 = DataType("MXInt8")

# By name. What of it can be used so far, supported.py says.
DATA_TYPES = {
    kind.name: kind
    for kind in (
        Int2, UInt2, Int4, UInt4, Int8, UInt8, Int16, UInt16, Int32, UInt32, Float16, BFloat16, BFP16, MX4, MX6, MX9,
        MXFP4E2M1, MXFP6E2M3, MXFP6E3M2, MXFP8E4M3, MXFP8E5M2, MXInt8,
    )
}  # fmt: skip
