"""The specs of formats that onnxruntime does not run: they exist as names."""

from __future__ import annotations

from typing import ClassVar

from quark.onnx.errors import UnsupportedError

from .spec import QTensorConfig

__all__ = [
    "BFP16Spec", "BFloat16Spec", "Float16Spec", "Int2Spec", "Int32Spec", "MX4Spec", "MX6Spec", "MX9Spec",
    "MXFP4E2M1Spec", "MXFP6E2M3Spec", "MXFP6E3M2Spec", "MXFP8E4M3Spec", "MXFP8E5M2Spec", "MXInt8Spec", "UInt2Spec",
    "UInt32Spec",
]  # fmt: skip


class _UnsupportedSpec(QTensorConfig):
    """A spec that cannot be made.

    Attributes:
        why: what stands against it.

    Raises:
        UnsupportedError: always; it names the specs that there are.
    """

    why: ClassVar[str] = "AMD Quark computes this format with custom operators, which onnxruntime does not have"

    def __post_init__(self) -> None:
        raise UnsupportedError(
            f"{type(self).__name__}: {self.why}. Supported are Int8Spec, UInt8Spec, Int16Spec and UInt16Spec, and for "
            "weights Int4Spec and UInt4Spec"
        )


class _TwoBitSpec(_UnsupportedSpec):
    why = (
        "onnxruntime (1.32) loads 2-bit weights, but its default optimisation refuses them beside 8-bit activations "
        "and miscomputes some MatMul and Gemm"
    )


class Int2Spec(_TwoBitSpec):
    """2-bit signed. For weights."""

    name: ClassVar[str] = "Int2Spec"


class UInt2Spec(_TwoBitSpec):
    """2-bit unsigned. For weights."""

    name: ClassVar[str] = "UInt2Spec"


class Int32Spec(_UnsupportedSpec):
    """32-bit signed."""

    name: ClassVar[str] = "Int32Spec"


class UInt32Spec(_UnsupportedSpec):
    """32-bit unsigned."""

    name: ClassVar[str] = "UInt32Spec"


class Float16Spec(_UnsupportedSpec):
    """IEEE half precision."""

    name: ClassVar[str] = "Float16Spec"


class BFloat16Spec(_UnsupportedSpec):
    """bfloat16."""

    name: ClassVar[str] = "BFloat16Spec"


class BFP16Spec(_UnsupportedSpec):
    """Block floating point."""

    name: ClassVar[str] = "BFP16Spec"


class MX4Spec(_UnsupportedSpec):
    """Block floating point with shared micro-exponents, 4 bits."""

    name: ClassVar[str] = "MX4Spec"


class MX6Spec(_UnsupportedSpec):
    """Block floating point with shared micro-exponents, 6 bits."""

    name: ClassVar[str] = "MX6Spec"


class MX9Spec(_UnsupportedSpec):
    """Block floating point with shared micro-exponents, 9 bits."""

    name: ClassVar[str] = "MX9Spec"


class MXFP4E2M1Spec(_UnsupportedSpec):
    """OCP microscaling, 4-bit float."""

    name: ClassVar[str] = "MXFP4E2M1Spec"


class MXFP6E2M3Spec(_UnsupportedSpec):
    """OCP microscaling, 6-bit float."""

    name: ClassVar[str] = "MXFP6E2M3Spec"


class MXFP6E3M2Spec(_UnsupportedSpec):
    """OCP microscaling, 6-bit float."""

    name: ClassVar[str] = "MXFP6E3M2Spec"


class MXFP8E4M3Spec(_UnsupportedSpec):
    """OCP microscaling, 8-bit float."""

    name: ClassVar[str] = "MXFP8E4M3Spec"


class MXFP8E5M2Spec(_UnsupportedSpec):
    """OCP microscaling, 8-bit float."""

    name: ClassVar[str] = "MXFP8E5M2Spec"


class MXInt8Spec(_UnsupportedSpec):
    """OCP microscaling, 8-bit integer."""

    name: ClassVar[str] = "MXInt8Spec"
