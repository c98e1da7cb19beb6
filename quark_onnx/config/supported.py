"""What this version cannot do yet, although the configuration is well formed."""

from __future__ import annotations

from typing import Any, NamedTuple

from quark.onnx.errors import UnsupportedError

from .algorithm import AutoMixprecisionConfig, BiasCorrectionConfig, CLEConfig, FastFinetuneConfig
from .data_type import types_for
from .extra_options import FIXED_OPTIONS, MEANINGLESS_OPTIONS
from .qconfig import QConfig
from .spec import CalibMethod, QLayerConfig, QTensorConfig, QuantGranularity, ScaleType
from .validate import problem

__all__ = ["IgnoredOption", "check_supported", "ignored_extra_options", "ignored_options"]

_ACTIVATION = {
    "data_type": types_for("activation"),
    "scale_type": tuple(ScaleType),
    "quant_granularity": (QuantGranularity.Tensor,),
    "activation_calibration": tuple(method for method in CalibMethod if method is not CalibMethod.MinOutputMSE),
}
_WEIGHT = {
    "data_type": types_for("weight"),
    "scale_type": tuple(ScaleType),
    "quant_granularity": tuple(QuantGranularity),
    "weight_calibration": tuple(CalibMethod),
}

_BIAS = {
    "data_type": types_for("bias"),
    "scale_type": tuple(ScaleType),
    "quant_granularity": (QuantGranularity.Tensor, QuantGranularity.Channel),
}
_TABLES = {"input_tensors": _ACTIVATION, "activation": _ACTIVATION, "weight": _WEIGHT, "bias": _BIAS,
           "output_tensors": _ACTIVATION}  # fmt: skip

# The methods for which CalibTensorRangeSymmetric means something.
_SYMMETRIC_OR_NOT = (CalibMethod.MinMax, CalibMethod.Percentile, CalibMethod.LayerwisePercentile)

# Keywords of the published loops, with why a closed-form solver has no use for them.
_NO_MEANING = {
    "output_qdq": "the error is taken at the layer's own output",
    "drop_ratio": "the layer sees the quantized model's inputs",
    "lr_adjust": "there are no steps",
    "dynamic_batch": "all samples enter one solve anyway",
    "batch_size": "all samples enter one solve",
    "num_batches": "there are no steps, so no early-stop window",
    "num_iterations": "there are no steps",
    "learning_rate": "there are no steps",
    "early_stop": "there are no steps to stop",
    "patience": "there are no steps to stop",
    "log_period": "there are no steps to log",
    "reg_param": "weights are integers throughout, nothing has to be pushed there",
    "beta_range": "weights are integers throughout, nothing has to be pushed there",
    "warm_start": "weights are integers throughout, nothing has to be pushed there",
}

# Keywords that mean nothing to either solver.
_NEVER = {
    "num_workers": "no loader processes are used",
    "pin_memory": "no loader processes are used",
    "use_gds": "no data is read by the GPU",
}


# The extra options that have an effect on a model that is quantized already.
_OF_FINETUNING = frozenset({"FastFinetune", "MatMulConstBOnly", "MaxMemory", "NodesToQuantize", "NumThreads"})


class IgnoredOption(NamedTuple):
    """A keyword that was set and has no effect on the solver in use."""

    keyword: str
    value: Any
    reason: str


def check_supported(config: QConfig) -> None:
    """Makes sure that this version can carry out a configuration.

    Raises:
        UnsupportedError: names the first field that it cannot, and what it can.
    """
    layer = config.global_config
    _check_layer("QConfig.global_config", layer)
    if layer.output_tensors not in (None, layer.inputs):
        instead = "None: an output is the next layer's input; give single layers other outputs"
        raise _unsupported("QConfig.global_config.output_tensors", layer.output_tensors, instead)
    for name in ("specific_layer_config", "layer_type_config"):
        for layer, targets in getattr(config, name).items():
            if layer is not None:
                _check_layer(f"QConfig.{name} of {list(targets)}", layer)
    _check_range_symmetry(config)
    for algorithm in config.algo_config:
        if isinstance(algorithm, AutoMixprecisionConfig):
            _check_layer("AutoMixprecisionConfig.target_layer_config", algorithm.target_layer_config)
            if algorithm.subgraph_json is not None:
                instead = "None: layers are looked at one by one"
                raise _unsupported("AutoMixprecisionConfig.subgraph_json", algorithm.subgraph_json, instead)
        elif not isinstance(algorithm, (FastFinetuneConfig, CLEConfig, BiasCorrectionConfig)):
            instead = (
                "AdaRoundConfig, AdaQuantConfig, CLEConfig, BiasCorrectionConfig or AutoMixprecisionConfig: no other "
                "algorithm is supported"
            )
            raise _unsupported("QConfig.algo_config", algorithm, f"{instead} yet")
    finetuning = config.fast_finetune
    if config.equalisation is not None and finetuning is not None and finetuning.ref_model_path is not None:
        instead = "None with CLEConfig: the reference's layers have other factors than those of the equalised model"
        raise _unsupported(f"{type(finetuning).__name__}.ref_model_path", finetuning.ref_model_path, instead)
    for name, value in config.extra_options.items():
        accepted, why = FIXED_OPTIONS.get(name, ((value,), ""))
        if value not in accepted:
            instead = " or ".join(map(repr, accepted)) or "it to be left out"
            raise _unsupported(f"QConfig.extra_options[{name!r}]", value, f"{instead}: {why}")


def ignored_extra_options(config: QConfig, *, quantizes: bool = True) -> tuple[IgnoredOption, ...]:
    """The extra options that were given and have no effect, to be reported to the user.

    Args:
        quantizes: False: the model is quantized already, with scales and a structure that stay.
    """
    meaningless = dict(MEANINGLESS_OPTIONS)
    if not quantizes:
        given = config.extra_options.keys() - _OF_FINETUNING
        meaningless |= dict.fromkeys(given - meaningless.keys(), "finetune() keeps the quantized model's structure")
    return tuple(
        IgnoredOption(name, value, meaningless[name])
        for name, value in config.extra_options.items()
        if name in meaningless
    )


def ignored_options(config: FastFinetuneConfig, *, in_steps: bool) -> tuple[IgnoredOption, ...]:
    """The keywords that were set and have no effect, to be reported to the user.

    Args:
        in_steps: some layer is trained by the published loops.
    """
    meaningless = _NEVER if in_steps else {**_NO_MEANING, **_NEVER}
    if not config.selective_update or config.evaluator is not None:
        meaningless = {**meaningless, "output_index": "only selective_update without an evaluator looks at it"}
    if config.parallel:
        meaningless = {"drop_ratio": "with parallel=True layers see the quantized model's inputs alone", **meaningless}
    return tuple(
        IgnoredOption(keyword, value, meaningless[keyword])
        for keyword, value in config.changed().items()
        if keyword in meaningless
    )


def _check_range_symmetry(config: QConfig) -> None:
    given = config.extra_options.get("CalibTensorRangeSymmetric")
    layers = (config.global_config, *config.specific_layer_config, *config.layer_type_config)
    specs = (spec for layer in layers if layer is not None for spec in (layer.inputs, layer.output_tensors))
    methods = {spec.activation_calibration for spec in specs if spec is not None}.difference(_SYMMETRIC_OR_NOT)
    if given is not None and methods:
        instead = f"it to be left out: {' and '.join(map(repr, methods))} has one kind of range"
        raise _unsupported("QConfig.extra_options['CalibTensorRangeSymmetric']", given, instead)


def _check_layer(where: str, layer: QLayerConfig) -> None:
    for name, table in _TABLES.items():
        spec = getattr(layer, name)
        if spec is not None:
            _check_spec(f"{where}.{name}", spec, table)


def _check_spec(where: str, spec: QTensorConfig, table: dict[str, tuple[Any, ...]]) -> None:
    for field, supported in table.items():
        if getattr(spec, field) not in supported:
            name = "calibration_method" if field.endswith("_calibration") else field
            why = (
                spec.data_type.missing.format(spec.data_type)
                if field == "data_type"
                else "nothing else is supported yet"
            )
            instead = f"{' or '.join(map(repr, supported))}: {why}"
            raise _unsupported(f"{where}.{name}", getattr(spec, name), instead)


def _unsupported(where: str, given: object, instead: str) -> UnsupportedError:
    return UnsupportedError(problem(where, given, instead))
