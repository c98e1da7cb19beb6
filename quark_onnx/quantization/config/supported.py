"""What this version cannot do yet, although the configuration is well formed."""

from __future__ import annotations

from typing import Any, NamedTuple

from quark.onnx.errors import UnsupportedError

from .algorithm import FastFinetuneConfig
from .config import QConfig
from .data_type import Int8, UInt8
from .spec import CalibMethod, QTensorConfig, QuantGranularity, ScaleType
from .validate import problem

__all__ = ["IgnoredOption", "check_engine_supports", "check_supported"]

_ACTIVATION = {
    "data_type": (Int8, UInt8),
    "scale_type": (ScaleType.Float32,),
    "quant_granularity": (QuantGranularity.Tensor,),
    "activation_calibration": (CalibMethod.MinMax, CalibMethod.Percentile),
}
_WEIGHT = {
    "data_type": (Int8, UInt8),
    "scale_type": (ScaleType.Float32,),
    "quant_granularity": (QuantGranularity.Tensor, QuantGranularity.Channel),
    "weight_calibration": (CalibMethod.MinMax, CalibMethod.MinOutputMSE),
}

# Keywords that the gradient solver will act on. Without it they would silently not do what they say.
_AWAITS_GRADIENT_SOLVER = (
    "optim_device",
    "infer_device",
    "output_index",
    "lr_adjust",
    "selective_update",
    "output_qdq",
    "drop_ratio",
    "ref_model_path",
    "dynamic_batch",
    "parallel",
    "select_max_mem_layer",
)

# Keywords that only steer an iteration over mini-batches, with why a closed-form solver has no use for them.
_NO_MEANING = {
    "batch_size": "all samples enter one solve",
    "num_batches": "there are no steps, so no early-stop window",
    "num_iterations": "there are no steps",
    "learning_rate": "there are no steps",
    "early_stop": "there are no steps to stop",
    "log_period": "there are no steps to log",
    "reg_param": "weights are integers throughout, nothing has to be pushed there",
    "beta_range": "weights are integers throughout, nothing has to be pushed there",
    "warm_start": "weights are integers throughout, nothing has to be pushed there",
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
    layer = config.global_config
    for where, given, instead in (
        (
            "specific_layer_config",
            config.specific_layer_config,
            "none: only global_config gives specs so far",
        ),
        ("layer_type_config", config.layer_type_config, "none: only global_config gives specs so far"),
        (
            "global_config.bias",
            layer.bias,
            "None: a bias is int32 with scale input_scale * weight_scale so far",
        ),
        (
            "global_config.output_tensors",
            layer.output_tensors,
            "None: outputs follow the other activations so far",
        ),
    ):
        if given:
            raise UnsupportedError(problem(f"QConfig.{where}", given, instead))
    _check_spec(
        "input_tensors" if layer.activation is None else "activation", config.activation_spec, _ACTIVATION
    )
    _check_spec("weight", config.weight_spec, _WEIGHT)


def _check_spec(role: str, spec: QTensorConfig, table: dict[str, tuple[Any, ...]]) -> None:
    for field, supported in table.items():
        if getattr(spec, field) not in supported:
            name = "calibration_method" if field.endswith("_calibration") else field
            where = f"QConfig.global_config.{role}.{name}"
            instead = f"{' or '.join(map(repr, supported))}: nothing else is supported yet"
            raise UnsupportedError(problem(where, getattr(spec, name), instead))


def check_engine_supports(config: FastFinetuneConfig) -> tuple[IgnoredOption, ...]:
    """Makes sure that this version's solver, least squares, does what an algorithm's keywords ask for.

    Returns:
        the keywords that were set and have no meaning for this solver, to be reported to the user.

    Raises:
        UnsupportedError: the gradient solver is asked for, or keywords that need it.
    """
    kind = type(config)
    changed = config.changed()
    if config.solver == "gradient":
        instead = "'auto' or 'least_squares': the gradient solver is not there yet"
        raise UnsupportedError(problem(f"{kind.__name__}.solver", config.solver, instead))
    for keyword in _AWAITS_GRADIENT_SOLVER:
        if keyword in changed:
            instead = f"{getattr(kind, keyword)!r}: this option arrives with the gradient solver"
            raise UnsupportedError(problem(f"{kind.__name__}.{keyword}", changed[keyword], instead))
    return tuple(
        IgnoredOption(keyword, value, _NO_MEANING[keyword])
        for keyword, value in changed.items()
        if keyword in _NO_MEANING
    )
