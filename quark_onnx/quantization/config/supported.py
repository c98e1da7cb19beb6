"""What this version cannot do yet, although the configuration is well formed."""

from __future__ import annotations

from typing import Any, NamedTuple

from quark.onnx.errors import UnsupportedError

from .algorithm import FastFinetuneConfig
from .config import QConfig
from .data_type import DATA_TYPES, Int8, Int16, UInt8, UInt16
from .spec import CalibMethod, QTensorConfig, QuantGranularity, ScaleType
from .validate import problem

__all__ = ["IgnoredOption", "check_supported", "ignored_options"]

_ACTIVATION = {
    "data_type": (Int8, UInt8, Int16, UInt16),
    "scale_type": (ScaleType.Float32,),
    "quant_granularity": (QuantGranularity.Tensor,),
    "activation_calibration": (CalibMethod.MinMax, CalibMethod.Percentile),
}
_WEIGHT = {
    "data_type": tuple(DATA_TYPES.values()),
    "scale_type": (ScaleType.Float32,),
    "quant_granularity": (QuantGranularity.Tensor, QuantGranularity.Channel),
    "weight_calibration": (CalibMethod.MinMax, CalibMethod.MinOutputMSE),
}

_NO_SPEC = {
    "bias": "None: a bias is int32 with the scale input_scale * weight_scale so far",
    "output_tensors": "None: all activations share one spec so far",
}

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


class IgnoredOption(NamedTuple):
    """A keyword that was set and has no effect on the solver in use."""

    keyword: str
    value: Any
    reason: str


def check_supported(config: QConfig) -> None:
    """Makes sure that this version can carry out the specs of a configuration.

    Raises:
        UnsupportedError: names the first field that it cannot, and what it can.
    """
    for name in ("specific_layer_config", "layer_type_config"):
        if given := getattr(config, name):
            raise _unsupported(f"QConfig.{name}", given, "none: only global_config gives specs so far")
    layer = config.global_config
    for name, instead in _NO_SPEC.items():
        if given := getattr(layer, name):
            raise _unsupported(f"QConfig.global_config.{name}", given, instead)
    inputs = "input_tensors" if layer.activation is None else "activation"
    _check_spec(f"QConfig.global_config.{inputs}", config.activation_spec, _ACTIVATION)
    _check_spec("QConfig.global_config.weight", config.weight_spec, _WEIGHT)


def ignored_options(config: FastFinetuneConfig, *, in_steps: bool) -> tuple[IgnoredOption, ...]:
    """The keywords that were set and have no effect, to be reported to the user.

    Args:
        in_steps: some layer is trained by the published loops.
    """
    meaningless = _NEVER if in_steps else {**_NO_MEANING, **_NEVER}
    if not config.selective_update or config.evaluator is not None:
        meaningless = {**meaningless, "output_index": "only selective_update without an evaluator looks at it"}
    return tuple(
        IgnoredOption(keyword, value, meaningless[keyword])
        for keyword, value in config.changed().items()
        if keyword in meaningless
    )


def _check_spec(where: str, spec: QTensorConfig, table: dict[str, tuple[Any, ...]]) -> None:
    for field, supported in table.items():
        if getattr(spec, field) not in supported:
            name = "calibration_method" if field.endswith("_calibration") else field
            instead = f"{' or '.join(map(repr, supported))}: nothing else is supported yet"
            raise _unsupported(f"{where}.{name}", getattr(spec, name), instead)


def _unsupported(where: str, given: object, instead: str) -> UnsupportedError:
    return UnsupportedError(problem(where, given, instead))
