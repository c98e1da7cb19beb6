"""How a tensor is quantized (`Int8Spec`, ...), and which tensors of a layer are (`QLayerConfig`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from quark.onnx.errors import ConfigError

from . import data_type as formats
from .data_type import DATA_TYPES, DataType, Int8, UInt8
from .frozen import FrozenConfig, NamedConfig, instance, strict_keywords
from .scale_choice import CalibMethod, QuantGranularity, ScaleType
from .validate import Check, Flag, member, optional, problem

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "BFP16Spec",
    "BFloat16Spec",
    "CalibMethod",
    "Float16Spec",
    "Int2Spec",
    "Int4Spec",
    "Int8Spec",
    "Int16Spec",
    "Int32Spec",
    "MX4Spec",
    "MX6Spec",
    "MX9Spec",
    "MXFP4E2M1Spec",
    "MXFP6E2M3Spec",
    "MXFP6E3M2Spec",
    "MXFP8E4M3Spec",
    "MXFP8E5M2Spec",
    "MXInt8Spec",
    "QLayerConfig",
    "QTensorConfig",
    "QuantGranularity",
    "ScaleType",
    "UInt2Spec",
    "UInt4Spec",
    "UInt8Spec",
    "UInt16Spec",
    "UInt32Spec",
    "XInt8Spec",
]


def _data_type(value: object) -> DataType:
    if not isinstance(value, DataType):
        raise TypeError
    return value


def _data_type_from_name(written: object) -> object:
    return DATA_TYPES.get(written, written) if isinstance(written, str) else written


Scale = Annotated[ScaleType, member(ScaleType)]
Granularity = Annotated[QuantGranularity, member(QuantGranularity)]
MethodOrNone = Annotated[CalibMethod | None, optional(member(CalibMethod))]
Format = Annotated[DataType, Check(f"a data type ({', '.join(DATA_TYPES)})", _data_type, _data_type_from_name)]


@strict_keywords
@dataclass(frozen=True, repr=False)
class QTensorConfig(NamedConfig):
    """How a tensor is quantized, by ONNX's QuantizeLinear and DequantizeLinear: a value x becomes the integer
    q = saturate(round(x / scale) + zero_point), which stands for (q - zero_point) * scale.

    Args:
        symmetric: the range is symmetric around 0, so that the zero point is 0 (128 for an unsigned type).
        scale_type: which values the scale can have.
        calibration_method: how the range is chosen. None is the default of the tensor's role: Percentile for an
            activation, or MinMSE where scales are powers of two; MinOutputMSE for a weight. A weight takes Entropy,
            Distribution and LayerwisePercentile as MinMax, which is what AMD Quark does with them.
        quant_granularity: what shares one scale.
        data_type: the integer format.

    Raises:
        ConfigError: a wrong value.
        ConfigTypeError: a wrong type, or an unknown keyword.
    """

    name: ClassVar[str] = "QTensorConfig"

    symmetric: Flag = True
    scale_type: Scale = ScaleType.Float32
    calibration_method: MethodOrNone = None
    quant_granularity: Granularity = QuantGranularity.Tensor
    data_type: Format = Int8

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self)
        if kind is not QTensorConfig and self.data_type != kind.data_type:
            expected = f"{kind.data_type}; {self.data_type} has a spec of its own"
            raise ConfigError(problem(f"{kind.__name__}.data_type", self.data_type, expected))

    def set_symmetric(self, value: bool) -> None:
        """Sets `symmetric`. Quantizers take a copy: what is set afterwards changes none of them."""
        self._set("symmetric", value)

    def set_scale_type(self, value: ScaleType) -> None:
        """Sets `scale_type`, as `set_symmetric`."""
        self._set("scale_type", value)

    def set_calibration_method(self, value: CalibMethod) -> None:
        """Sets `calibration_method`, as `set_symmetric`."""
        self._set("calibration_method", value)

    def set_quant_granularity(self, value: QuantGranularity) -> None:
        """Sets `quant_granularity`, as `set_symmetric`."""
        self._set("quant_granularity", value)

    def set_data_type(self, value: DataType) -> None:
        """Sets `data_type`, as `set_symmetric`; of a QTensorConfig, as the other classes have each their own."""
        self._set("data_type", value)

    def _set(self, name: str, value: object) -> None:
        changed: dict[str, Any] = {name: value}
        object.__setattr__(self, name, getattr(replace(self, **changed), name))  # replace() checks it

    @property
    def activation_calibration(self) -> CalibMethod:
        """The calibration method of an activation with this spec."""
        default = CalibMethod.MinMSE if self.scale_type is ScaleType.PowerOf2 else CalibMethod.Percentile
        return self.calibration_method or default

    @property
    def weight_calibration(self) -> CalibMethod:
        """The calibration method of a weight with this spec: MinOutputMSE, MinMSE, Percentile or MinMax."""
        if self.calibration_method is None:
            return CalibMethod.MinOutputMSE
        if self.calibration_method in (CalibMethod.MinOutputMSE, CalibMethod.MinMSE, CalibMethod.Percentile):
            return self.calibration_method
        return CalibMethod.MinMax

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Self:
        """The spec that `to_dict` wrote; without `name`, as AMD Quark writes it, the data type tells."""
        if cls is QTensorConfig and isinstance(written, Mapping) and "data_type" in written:
            written = {"name": f"{written['data_type']}Spec", **written}
        return super().from_dict(written)


@strict_keywords
@dataclass(frozen=True, repr=False)
class Int8Spec(QTensorConfig):
    """8-bit signed, symmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "Int8Spec"


@strict_keywords
@dataclass(frozen=True, repr=False)
class UInt8Spec(QTensorConfig):
    """8-bit unsigned, asymmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "UInt8Spec"

    symmetric: Flag = False
    data_type: Format = UInt8


@strict_keywords
@dataclass(frozen=True, repr=False)
class XInt8Spec(Int8Spec):
    """8-bit signed, symmetric, with power-of-two scales; the arguments of `QTensorConfig`.

    As a spec of activations there is no Q/DQ between a layer and the Relu, LeakyRelu, PRelu or Clip behind it; where
    weights have it too, biases are int8 with scales of their own.
    """

    name: ClassVar[str] = "XInt8Spec"

    scale_type: Scale = ScaleType.PowerOf2


@strict_keywords
@dataclass(frozen=True, repr=False)
class Int2Spec(QTensorConfig):
    """2-bit signed, symmetric; the arguments of `QTensorConfig`. For weights, once onnxruntime runs them."""

    name: ClassVar[str] = "Int2Spec"

    data_type: Format = formats.Int2


@strict_keywords
@dataclass(frozen=True, repr=False)
class UInt2Spec(QTensorConfig):
    """2-bit unsigned, asymmetric; the arguments of `QTensorConfig`. For weights, once onnxruntime runs them."""

    name: ClassVar[str] = "UInt2Spec"

    symmetric: Flag = False
    data_type: Format = formats.UInt2


@strict_keywords
@dataclass(frozen=True, repr=False)
class Int4Spec(QTensorConfig):
    """4-bit signed, symmetric; the arguments of `QTensorConfig`. For weights."""

    name: ClassVar[str] = "Int4Spec"

    data_type: Format = formats.Int4


@strict_keywords
@dataclass(frozen=True, repr=False)
class UInt4Spec(QTensorConfig):
    """4-bit unsigned, asymmetric; the arguments of `QTensorConfig`. For weights."""

    name: ClassVar[str] = "UInt4Spec"

    symmetric: Flag = False
    data_type: Format = formats.UInt4


@strict_keywords
@dataclass(frozen=True, repr=False)
class Int16Spec(QTensorConfig):
    """16-bit signed, symmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "Int16Spec"

    data_type: Format = formats.Int16


@strict_keywords
@dataclass(frozen=True, repr=False)
class UInt16Spec(QTensorConfig):
    """16-bit unsigned, asymmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "UInt16Spec"

    symmetric: Flag = False
    data_type: Format = formats.UInt16


@strict_keywords
@dataclass(frozen=True, repr=False)
class Int32Spec(QTensorConfig):
    """32-bit signed, symmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "Int32Spec"

    data_type: Format = formats.Int32


@strict_keywords
@dataclass(frozen=True, repr=False)
class UInt32Spec(QTensorConfig):
    """32-bit unsigned, asymmetric; the arguments of `QTensorConfig`."""

    name: ClassVar[str] = "UInt32Spec"

    symmetric: Flag = False
    data_type: Format = formats.UInt32


@strict_keywords
@dataclass(frozen=True, repr=False)
class Float16Spec(QTensorConfig):
    """IEEE half precision."""

    name: ClassVar[str] = "Float16Spec"

    data_type: Format = formats.Float16


@strict_keywords
@dataclass(frozen=True, repr=False)
class BFloat16Spec(QTensorConfig):
    """The upper half of a float32."""

    name: ClassVar[str] = "BFloat16Spec"

    data_type: Format = formats.BFloat16


@strict_keywords
@dataclass(frozen=True, repr=False)
class BFP16Spec(QTensorConfig):
    """Block floating point: 8-bit integers that share an 8-bit exponent."""

    name: ClassVar[str] = "BFP16Spec"

    data_type: Format = formats.BFP16


@strict_keywords
@dataclass(frozen=True, repr=False)
class MX4Spec(QTensorConfig):
    """MX4 of arXiv 2302.08007: a block's exponent, and one more bit of it per pair."""

    name: ClassVar[str] = "MX4Spec"

    data_type: Format = formats.MX4


@strict_keywords
@dataclass(frozen=True, repr=False)
class MX6Spec(QTensorConfig):
    """MX6 of arXiv 2302.08007: a block's exponent, and one more bit of it per pair."""

    name: ClassVar[str] = "MX6Spec"

    data_type: Format = formats.MX6


@strict_keywords
@dataclass(frozen=True, repr=False)
class MX9Spec(QTensorConfig):
    """MX9 of arXiv 2302.08007: a block's exponent, and one more bit of it per pair."""

    name: ClassVar[str] = "MX9Spec"

    data_type: Format = formats.MX9


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXFP4E2M1Spec(QTensorConfig):
    """4-bit floats of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXFP4E2M1Spec"

    data_type: Format = formats.MXFP4E2M1


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXFP6E2M3Spec(QTensorConfig):
    """6-bit floats of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXFP6E2M3Spec"

    data_type: Format = formats.MXFP6E2M3


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXFP6E3M2Spec(QTensorConfig):
    """6-bit floats of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXFP6E3M2Spec"

    data_type: Format = formats.MXFP6E3M2


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXFP8E4M3Spec(QTensorConfig):
    """8-bit floats of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXFP8E4M3Spec"

    data_type: Format = formats.MXFP8E4M3


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXFP8E5M2Spec(QTensorConfig):
    """8-bit floats of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXFP8E5M2Spec"

    data_type: Format = formats.MXFP8E5M2


@strict_keywords
@dataclass(frozen=True, repr=False)
class MXInt8Spec(QTensorConfig):
    """8-bit integers of the OCP Microscaling specification, 32 to an exponent."""

    name: ClassVar[str] = "MXInt8Spec"

    data_type: Format = formats.MXInt8


def _spec(value: object) -> QTensorConfig:
    if isinstance(value, type) and issubclass(value, QTensorConfig):
        return value()  # AMD Quark's user guide leaves the brackets out
    if not isinstance(value, QTensorConfig):
        raise TypeError
    return value


SpecOrNone = Annotated[QTensorConfig | None, optional(replace(instance(QTensorConfig), convert=_spec))]


@strict_keywords
@dataclass(frozen=True, repr=False)
class QLayerConfig(FrozenConfig):
    """Which tensors of a layer are quantized, and how. None leaves a tensor to the default, or to float.

    Args:
        input_tensors: the activations.
        activation: the older name of `input_tensors`; give one of the two.
        weight: the constant weight.
        bias: the bias. Without a spec it is int32 with the scale input_scale * weight_scale; where the scales of input
            and weight are powers of two it has the weight's spec (`ExtraOptions.Int32Bias`).
        output_tensors: the layer's outputs, where they differ from `input_tensors`.

    Raises:
        ConfigError: both names of the input are given, or MinOutputMSE for something else than a weight.
        ConfigTypeError: a wrong type, or an unknown keyword.
    """

    input_tensors: SpecOrNone = None
    activation: SpecOrNone = None
    weight: SpecOrNone = None
    bias: SpecOrNone = None
    output_tensors: SpecOrNone = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.input_tensors is not None and self.activation is not None:
            raise ConfigError(
                problem("QLayerConfig", self, "input_tensors or activation, not both: they are one thing")
            )
        for field in fields(self):
            spec = getattr(self, field.name)
            if field.name != "weight" and spec and spec.calibration_method is CalibMethod.MinOutputMSE:
                where = f"QLayerConfig.{field.name}.calibration_method"
                raise ConfigError(problem(where, spec.calibration_method, "another one: it is for weights only"))

    def taken(self) -> QLayerConfig:
        """A copy with specs of its own."""
        copies: dict[str, Any] = {
            field.name: replace(spec) for field in fields(self) if (spec := getattr(self, field.name)) is not None
        }
        return QLayerConfig(**copies)

    @property
    def specs(self) -> tuple[QTensorConfig, ...]:
        """All that are given."""
        found = (getattr(self, field.name) for field in fields(self))
        return tuple(spec for spec in found if spec is not None)

    @property
    def inputs(self) -> QTensorConfig | None:
        """The spec of the input activations, under whichever name it was given."""
        return self.input_tensors or self.activation
