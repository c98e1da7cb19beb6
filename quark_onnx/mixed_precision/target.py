"""What a quantized model is to keep, and which formats its tensors may have: `Target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any

from quark.onnx.config.frozen import FrozenConfig, instance, strict_keywords
from quark.onnx.config.spec import (
    Int4Spec,
    Int8Spec,
    Int16Spec,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt4Spec,
    UInt8Spec,
    UInt16Spec,
)
from quark.onnx.config.validate import Check, function, integer, optional, problem, real
from quark.onnx.errors import ConfigError

__all__ = ["Target"]

_KINDS: dict[tuple[bool, int], type[QTensorConfig]] = {
    (True, 4): Int4Spec, (True, 8): Int8Spec, (True, 16): Int16Spec,
    (False, 4): UInt4Spec, (False, 8): UInt8Spec, (False, 16): UInt16Spec,
}  # fmt: skip
_GOALS = ("max_drop", "sqnr_db", "mse", "max_distance", "min_score", "max_bytes")


def _specs(value: object, *, with_float: bool) -> tuple[QTensorConfig | None, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if not value:
        raise ValueError
    one = instance(QTensorConfig)
    return tuple(None if item is None and with_float else one.convert(item) for item in value)


WeightFormats = Annotated[
    tuple[QTensorConfig, ...] | None,
    optional(Check("a list of one or more specs", lambda value: _specs(value, with_float=False))),
]
ActivationFormats = Annotated[
    tuple[QTensorConfig | None, ...] | None,
    optional(Check("a list of one or more specs, or None for float", lambda value: _specs(value, with_float=True))),
]
NotNegative = Annotated[float | None, optional(real("a number >= 0", lambda x: x >= 0))]
Positive = Annotated[float | None, optional(real("a number > 0", lambda x: x > 0))]
Number = Annotated[float | None, optional(real("a number", lambda _: True))]
Size = Annotated[int | None, optional(integer("an int >= 1", lambda n: n >= 1))]
Index = Annotated[int, integer("an int >= 0", lambda n: n >= 0)]


@strict_keywords
@dataclass(frozen=True, kw_only=True, repr=False)
class Target(FrozenConfig):
    """What a quantized model is to keep, measured as onnxruntime runs it by default, on samples that nothing is fitted
    to. Exactly one of the first six is given; the formats that reach it with the fewest bits are looked for.

    Args:
        max_drop: how much the score of `evaluator` may be below the float model's; without one, which share of the
            samples (0 to 1) may have another largest entry of the first output, (samples, classes): it is reached
            where that share and its standard error are within it.
        sqnr_db: signal to quantization noise ratio of the outputs, in dB, at least.
        mse: mean squared difference of the float outputs, at most.
        max_distance: mean of `distance` over the items, at most.
        min_score: the score of `evaluator`, at least.
        max_bytes: the constants of the model, at most: then the formats of weights with the least error are looked for.
        evaluator: takes an onnxruntime.InferenceSession, gives a finite number; higher is better.
        distance: takes an output of the float model and of the quantized one, arrays of an item; gives a number.
        output_index: of the output that `distance` is taken of.
        weights: the formats that weights may have. None: that of the configuration, and its like with a scale for each
            channel and 8 or 16 bits if these are more; with `max_bytes` with 4 bits too.
        activations: the formats that activations may have, None among them is float. None: that of the configuration,
            its like with 16 bits, and float.
        time_limit: seconds from which on no further formats are tried.
        validation: the samples to measure on, in any form that `data_reader` takes. None: every fourth of the
            calibration data.

    Raises:
        ConfigError: none or several of the first six; an evaluator or a distance is missing, or one too many.
    """

    max_drop: NotNegative = None
    sqnr_db: Number = None
    mse: Positive = None
    max_distance: Number = None
    min_score: Number = None
    max_bytes: Size = None
    evaluator: Annotated[Callable[[Any], float] | None, optional(function)] = None
    distance: Annotated[Callable[[Any, Any], float] | None, optional(function)] = None
    output_index: Index = 0
    weights: WeightFormats = None
    activations: ActivationFormats = None
    time_limit: Positive = None
    validation: Any = field(default=None, compare=False)

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, in order; of arrays it is enough that they are there."""
        default = {one.name: one.default for one in fields(self)}
        given = {name: getattr(self, name) for name in default}
        return {n: v for n, v in given.items() if v is not default[n] and (n == "validation" or v != default[n])}

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(problem("Target", given, f"exactly one of {', '.join(_GOALS)}"))
        wants_score = self.min_score is not None
        if (wants_score and self.evaluator is None) or (
            self.evaluator is not None and not wants_score and self.max_drop is None
        ):
            expected = "an evaluator with min_score or max_drop, and min_score with an evaluator"
            raise ConfigError(problem("Target.evaluator", self.evaluator, expected))
        if (self.max_distance is None) != (self.distance is None):
            raise ConfigError(problem("Target.distance", self.distance, "both max_distance and distance, or none"))

    @property
    def goal(self) -> str:
        """The field that is given."""
        return next(name for name in _GOALS if getattr(self, name) is not None)

    @property
    def wanted(self) -> float:
        """Its value."""
        return float(getattr(self, self.goal))

    def with_candidates(self, weight: QTensorConfig, activation: QTensorConfig) -> Target:
        """The target with all candidates named, those with the fewest bits first.

        Args:
            weight, activation: those of the configuration.
        """
        weights, activations = self.weights, self.activations
        if weights is None:
            wider = weight
            if weight.quant_granularity is QuantGranularity.Tensor:
                wider = replace(weight, quant_granularity=QuantGranularity.Channel)
            bits = [b for b in (4, 8, 16) if b > weight.data_type.bits or self.max_bytes is not None]
            weights = tuple(dict.fromkeys((weight, wider, *(with_bits(wider, b) for b in bits))))
        if activations is None:
            finer = () if activation.data_type.bits >= 16 else (with_bits(activation, 16),)
            # Devices with scales that are powers of two have no floats.
            floats = () if activation.scale_type is ScaleType.PowerOf2 else (None,)
            activations = (activation, *finer, *floats) if self.max_bytes is None else (activation,)
        return replace(
            self,
            weights=tuple(sorted(weights, key=bits_of)),
            activations=tuple(sorted(activations, key=bits_of)),
        )


def bits_of(spec: QTensorConfig | None) -> int:
    """The bits of a value; 32 of a float."""
    return 32 if spec is None else spec.data_type.bits


def with_bits(spec: QTensorConfig, bits: int) -> QTensorConfig:
    """A spec like another, of a signed or unsigned type as that one."""
    kind = _KINDS[spec.data_type.signed, bits]
    return kind(spec.symmetric, spec.scale_type, spec.calibration_method, spec.quant_granularity)
