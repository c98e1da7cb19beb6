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
    "types_for",
]


_CUSTOM = "{} needs AMD Quark's custom operators"
_TWO_BITS = "onnxruntime (1.32) takes {} for 8 bits or miscomputes it when it optimises the model"


@dataclass(frozen=True, repr=False, kw_only=True)
class DataType:
    """A number format. What the package does with one follows from these fields alone.

    Attributes:
        name: its name in this package, for example "Int8".
        bits: its width; 0 of the formats whose numbers have an exponent, their own or that of their block, which
            exist as names only.
        signed: whether it is two's complement.
        element_type: ONNX's name of the type that tensors of it have, "INT8"; "" where there is none.
        quantizer: onnxruntime.quantization's name, "QInt8"; "" where its quantizer does not have it.
        first_opset: the first whose QuantizeLinear and DequantizeLinear have it, and an axis. Before 21 onnxruntime has
            4 and 16 bits in its own domain com.microsoft.
        roles: what tensors a configuration may give it: "activation", "weight" and "bias".
        near: finetune() takes weights of it. Half of a layer's integers farther from the rounded float weight than so
            many steps mean that it is another weight. None: it does not take them.
        missing: what stands in the way where a role is not there.
    """

    name: str
    bits: int = 0
    signed: bool = True
    element_type: str = ""
    quantizer: str = ""
    first_opset: int = 0
    roles: tuple[str, ...] = ()
    near: int | None = None
    missing: str = _CUSTOM

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


_ALL = ("activation", "weight", "bias")
_NOWHERE_ELSE = "nothing else is supported here"

Int2 = DataType(name="Int2", bits=2, signed=True, element_type="INT2", near=0, missing=_TWO_BITS)
UInt2 = DataType(name="UInt2", bits=2, signed=False, element_type="UINT2", near=0, missing=_TWO_BITS)
Int4 = DataType(
    name="Int4",
    bits=4,
    signed=True,
    element_type="INT4",
    quantizer="QInt4",
    first_opset=21,
    roles=("weight",),
    near=1,
    missing=_NOWHERE_ELSE,
)
UInt4 = DataType(
    name="UInt4",
    bits=4,
    signed=False,
    element_type="UINT4",
    quantizer="QUInt4",
    first_opset=21,
    roles=("weight",),
    near=1,
    missing=_NOWHERE_ELSE,
)
Int8 = DataType(
    name="Int8",
    bits=8,
    signed=True,
    element_type="INT8",
    quantizer="QInt8",
    first_opset=13,
    roles=_ALL,
    near=2,
    missing=_NOWHERE_ELSE,
)
UInt8 = DataType(
    name="UInt8",
    bits=8,
    signed=False,
    element_type="UINT8",
    quantizer="QUInt8",
    first_opset=13,
    roles=_ALL,
    near=2,
    missing=_NOWHERE_ELSE,
)
Int16 = DataType(
    name="Int16", bits=16, signed=True, element_type="INT16", quantizer="QInt16", first_opset=21, roles=_ALL, near=512
)
UInt16 = DataType(
    name="UInt16",
    bits=16,
    signed=False,
    element_type="UINT16",
    quantizer="QUInt16",
    first_opset=21,
    roles=_ALL,
    near=512,
)
Int32 = DataType(name="Int32", bits=32, signed=True, element_type="INT32", first_opset=13, roles=("bias",))
UInt32 = DataType(name="UInt32", bits=32, signed=False, element_type="UINT32", first_opset=13)
Float16 = DataType(name="Float16")
BFloat16 = DataType(name="BFloat16")
BFP16 = DataType(name="BFP16")
MX4 = DataType(name="MX4")
MX6 = DataType(name="MX6")
MX9 = DataType(name="MX9")
MXFP4E2M1 = DataType(name="MXFP4E2M1")
MXFP6E2M3 = DataType(name="MXFP6E2M3")
MXFP6E3M2 = DataType(name="MXFP6E3M2")
MXFP8E4M3 = DataType(name="MXFP8E4M3")
MXFP8E5M2 = DataType(name="MXFP8E5M2")
MXInt8 = DataType(name="MXInt8")

# All formats by name. A new one is an object above and an entry here.
DATA_TYPES = {
    kind.name: kind
    for kind in (
        Int2, UInt2, Int4, UInt4, Int8, UInt8, Int16, UInt16, Int32, UInt32, Float16, BFloat16, BFP16, MX4, MX6, MX9,
        MXFP4E2M1, MXFP6E2M3, MXFP6E3M2, MXFP8E4M3, MXFP8E5M2, MXInt8,
    )
}  # fmt: skip


def types_for(role: str) -> tuple[DataType, ...]:
    """The formats that a configuration may give tensors of a role, 8 bits first."""
    found = (kind for kind in DATA_TYPES.values() if role in kind.roles)
    return tuple(sorted(found, key=lambda kind: (kind.bits < 8, kind.bits)))
