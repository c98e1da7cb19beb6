"""A ready configuration as it is handed out: changed as its owner likes, under old names too, until it is taken."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from quark.onnx.config.algorithm import AdaQuantConfig, AdaRoundConfig, AlgoConfig, CLEConfig, FastFinetuneConfig
from quark.onnx.config.fast_finetune_options import written_options
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import (
    BFloat16Spec,
    BFP16Spec,
    CalibMethod,
    Float16Spec,
    Int4Spec,
    Int8Spec,
    Int16Spec,
    Int32Spec,
    QTensorConfig,
    QuantGranularity,
    ScaleType,
    UInt4Spec,
    UInt8Spec,
    UInt16Spec,
    UInt32Spec,
)
from quark.onnx.config.validate import checks, nearest, problem
from quark.onnx.errors import ConfigError, ConfigTypeError, UnsupportedError

__all__ = ["OLD_NAMES", "OpenConfig", "opened"]

_TUNES = "FastFinetune"


class _OpenOptions(dict[str, Any]):
    """Extra options that can be changed. `["FastFinetune"]` is there as soon as it is asked for, with what differs from
    the defaults of the algorithm.
    """

    def __init__(self, options: Mapping[str, Any], config: OpenConfig) -> None:
        super().__init__({name: _thawed(value) for name, value in options.items()})
        self._config = config

    def __missing__(self, name: str) -> Any:
        algorithm = self._config.algorithm if name == _TUNES else None
        if algorithm is None:
            raise KeyError(name)
        self[name] = written_options(algorithm)
        return self[name]


class OpenConfig(QConfig):
    """A `QConfig` whose fields may be assigned to, and older names of `OLD_NAMES` beside them. Each value is checked
    when it is assigned, what is written into `extra_options` when a quantizer takes its copy (`taken`).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "extra_options", _OpenOptions(self.extra_options, self))

    @property
    def algorithm(self) -> FastFinetuneConfig | None:
        """AdaRound or AdaQuant, as algo_config lists it."""
        return next((one for one in self.algo_config if isinstance(one, FastFinetuneConfig)), None)

    @property
    def options(self) -> dict[str, Any]:
        """The extra options, to be changed."""
        return cast("dict[str, Any]", self.extra_options)

    @property
    def global_quant_config(self) -> OpenConfig:
        """This configuration, as `Config(global_quant_config=...)` holds it in older scripts."""
        return self

    def __setattr__(self, name: str, value: object) -> None:
        known = checks(QConfig)
        if name in known:
            converted = known[name](f"QConfig.{name}", value)
            if name == "extra_options":
                converted = _OpenOptions(converted, self)
            object.__setattr__(self, name, converted)
        elif name in OLD_NAMES:
            OLD_NAMES[name](self, value)
            self.__dict__.setdefault("_assigned", {})[name] = value
        else:
            raise ConfigTypeError(f"QConfig has no field {name!r}; {nearest(name, [*known, *OLD_NAMES])}")

    def __getattr__(self, name: str) -> Any:
        if name in OLD_NAMES:
            found = {"include_cle": self.equalisation is not None, "include_fast_ft": self.algorithm is not None}
            return self.__dict__.get("_assigned", {}).get(name, found.get(name))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QConfig) and self.taken() == other.taken()

    def __hash__(self) -> int:
        return hash(self.taken())

    def __repr__(self) -> str:
        return repr(self.taken())

    def __reduce__(self) -> tuple[Callable[[QConfig], OpenConfig], tuple[QConfig]]:
        return opened, (self.taken(),)  # copies and pickles


def opened(config: QConfig) -> OpenConfig:
    """A copy of a configuration that may be changed."""
    taken = config.taken()
    return OpenConfig(**{field.name: getattr(taken, field.name) for field in fields(QConfig)})


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _thawed(item) for name, item in value.items()}
    return value


_SPECS: dict[str, type[QTensorConfig]] = {
    "QInt4": Int4Spec, "QUInt4": UInt4Spec, "QInt8": Int8Spec, "QUInt8": UInt8Spec, "QInt16": Int16Spec,
    "QUInt16": UInt16Spec, "QInt32": Int32Spec, "QUInt32": UInt32Spec, "QFloat16": Float16Spec,
    "QBFloat16": BFloat16Spec, "QBFP": BFP16Spec,
}  # fmt: skip
_METHODS: dict[str, tuple[CalibMethod, ScaleType]] = {
    "CalibrationMethod.MinMax": (CalibMethod.MinMax, ScaleType.Float32),
    "CalibrationMethod.Entropy": (CalibMethod.Entropy, ScaleType.Float32),
    "CalibrationMethod.Percentile": (CalibMethod.Percentile, ScaleType.Float32),
    "CalibrationMethod.Distribution": (CalibMethod.Distribution, ScaleType.Float32),
    "PowerOfTwoMethod.NonOverflow": (CalibMethod.MinMax, ScaleType.PowerOf2),
    "PowerOfTwoMethod.MinMSE": (CalibMethod.MinMSE, ScaleType.PowerOf2),
    "LayerWiseMethod.LayerWisePercentile": (CalibMethod.LayerwisePercentile, ScaleType.Float32),
    "ExtendedCalibrationMethod.MinMSE": (CalibMethod.MinMSE, ScaleType.Float32),
    "Int16Method.MinMax": (CalibMethod.MinMax, ScaleType.Int16),
}
_KEPT = ("scale_type", "calibration_method", "quant_granularity")


def _with_specs(config: OpenConfig, activation: QTensorConfig, weight: QTensorConfig) -> None:
    name = "activation" if config.global_config.activation is not None else "input_tensors"
    changed: dict[str, Any] = {name: activation, "weight": weight}
    config.global_config = replace(config.global_config, **changed)  # type: ignore[misc]  # OpenConfig allows it


def _of_type(spec: QTensorConfig, name: str, value: object) -> QTensorConfig:
    kind = _SPECS.get(value.name if isinstance(value, enum.Enum) else "")
    if kind is None:
        raise ConfigError(problem(f"QuantizationConfig.{name}", value, f"a QuantType: {', '.join(_SPECS)}"))
    return kind(**{keyword: getattr(spec, keyword) for keyword in _KEPT})


def _set_activation_type(config: OpenConfig, value: object) -> None:
    _with_specs(config, _of_type(config.activation_spec, "activation_type", value), config.weight_spec)


def _set_weight_type(config: OpenConfig, value: object) -> None:
    _with_specs(config, config.activation_spec, _of_type(config.weight_spec, "weight_type", value))


def _set_calibrate_method(config: OpenConfig, value: object) -> None:
    name = f"{type(value).__name__}.{value.name}" if isinstance(value, enum.Enum) else ""
    if name not in _METHODS:
        raise ConfigError(problem("QuantizationConfig.calibrate_method", value, f"one of {', '.join(_METHODS)}"))
    method, scales = _METHODS[name]
    activation = replace(config.activation_spec, calibration_method=method, scale_type=scales)
    _with_specs(config, activation, replace(config.weight_spec, scale_type=scales))


def _set_per_channel(config: OpenConfig, value: object) -> None:
    granularity = QuantGranularity.Channel if value else QuantGranularity.Tensor
    _with_specs(config, config.activation_spec, replace(config.weight_spec, quant_granularity=granularity))


def _set_algorithms(config: OpenConfig, algorithms: list[AlgoConfig]) -> None:
    config.algo_config = tuple(algorithms)  # type: ignore[misc]  # OpenConfig allows it


def _set_include_cle(config: OpenConfig, value: object) -> None:
    others = [one for one in config.algo_config if not isinstance(one, CLEConfig)]
    _set_algorithms(config, [CLEConfig(), *others] if value else others)


def _set_include_fast_ft(config: OpenConfig, value: object) -> None:
    others = [one for one in config.algo_config if not isinstance(one, FastFinetuneConfig)]
    if not value:
        config.options.pop(_TUNES, None)
        _set_algorithms(config, others)
    elif config.algorithm is None:
        asked = config.options.get(_TUNES, {}).get("OptimAlgorithm", "adaround")
        _set_algorithms(config, [*others, AdaQuantConfig() if asked == "adaquant" else AdaRoundConfig()])


def _set_exclude(config: OpenConfig, value: object) -> None:
    more: Any = value or ()
    config.exclude = (*config.exclude, *more)  # type: ignore[misc]  # OpenConfig allows it


def _sets_option(option: str) -> Callable[[OpenConfig, object], None]:
    def assign(config: OpenConfig, value: object) -> None:
        if value:
            config.options[option] = value

    return assign


@dataclass(frozen=True)
class _Only:
    """An old name of something that is one way here.

    Attributes:
        values: by name or as they are: those that mean what is done here.
        instead: what to write for the others.
    """

    name: str
    values: tuple[object, ...]
    instead: str

    def __call__(self, config: OpenConfig, value: object) -> None:  # noqa: ARG002  (as the others)
        plain = value.name if isinstance(value, enum.Enum) else value
        if plain not in self.values:
            raise UnsupportedError(f"QuantizationConfig.{self.name}={value!r} is not supported: {self.instead}")


def _is_about_logs(config: OpenConfig, value: object) -> None:
    """The name says how much AMD Quark logs, and nothing of the model."""


_SUBGRAPH = "list in exclude what stays in float: names of nodes, or ([first nodes], [last nodes])"
OLD_NAMES: Mapping[str, Callable[[OpenConfig, object], None]] = {
    "quant_format": _Only("quant_format", ("QDQ",), "models have Q/DQ, QuantFormat.QDQ"),
    "calibrate_method": _set_calibrate_method,
    "activation_type": _set_activation_type,
    "weight_type": _set_weight_type,
    "per_channel": _set_per_channel,
    "include_cle": _set_include_cle,
    "include_fast_ft": _set_include_fast_ft,
    "include_sq": _Only("include_sq", (False,), "SmoothQuantConfig is not there"),
    "include_rotation": _Only("include_rotation", (False,), "QuarotConfig is not there"),
    "include_gptq": _Only("include_gptq", (False,), "AdaQuantConfig tunes weights too"),
    "include_auto_mp": _Only("include_auto_mp", (False,), "give specific_layer_config the layers with more bits"),
    "use_dynamic_quant": _Only("use_dynamic_quant", (False,), "ranges of activations are constants of the model"),
    "reduce_range": _Only("reduce_range", (False,), "give it to single tensors, in TensorQuantOverrides"),
    "convert_fp16_to_fp32": _Only("convert_fp16_to_fp32", (False,), "16-bit models are quantized in float32 anyway"),
    "convert_nchw_to_nhwc": _Only("convert_nchw_to_nhwc", (False,), "convert the model before"),
    "nodes_to_exclude": _set_exclude,
    "subgraphs_to_exclude": _set_exclude,
    "nodes_to_quantize": _sets_option("NodesToQuantize"),
    "op_types_to_quantize": _sets_option("OpTypesToQuantize"),
    "extra_op_types_to_quantize": _sets_option("ExtraOpTypesToQuantize"),
    "input_nodes": _Only("input_nodes", (None, [], ()), _SUBGRAPH),
    "output_nodes": _Only("output_nodes", (None, [], ()), _SUBGRAPH),
    "optimize_model": _Only("optimize_model", (True,), "the model is always prepared in the same way"),
    "enable_npu_cnn": _sets_option("EnableNPUCnn"),
    "enable_npu_transformer": _sets_option("EnableNPUTransformer"),
    "debug_mode": _sets_option("DebugMode"),
    "print_summary": _sets_option("PrintSummary"),
    "ignore_warnings": _sets_option("IgnoreWarnings"),
    "execution_providers": _sets_option("ExecutionProviders"),
    "crypto_mode": _Only("crypto_mode", (False,), "nothing is encrypted"),
    "log_severity_level": _is_about_logs,
}
