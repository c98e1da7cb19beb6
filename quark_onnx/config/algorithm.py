"""The algorithms and their options: `AdaRoundConfig`, `AdaQuantConfig`, `CLEConfig` and `BiasCorrectionConfig`.

The others that AMD Quark has are here with their options, and an error where one is to be carried out.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from quark.onnx.errors import ConfigError
from quark.onnx.operators.table import OPERATORS

from .frozen import NamedConfig, instance, strict_keywords
from .spec import QLayerConfig
from .validate import Check, Flag, FlagOrNone, PathOrNone, function, integer, optional, problem, real, string, strings

__all__ = [
    "TUNABLE_OP_TYPES",
    "AdaQuantConfig",
    "AdaRoundConfig",
    "AlgoConfig",
    "AutoMixprecisionConfig",
    "BiasCorrectionConfig",
    "CLEConfig",
    "FastFinetuneConfig",
    "GPTQConfig",
    "QuarotConfig",
    "SmoothQuantConfig",
]

TUNABLE_OP_TYPES = tuple(OPERATORS)
_SOLVERS = ("auto", "gradient", "least_squares")


def _pair(value: object) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if len(value) != 2:
        raise ValueError
    first, second = (real("", lambda x: x > 0).convert(item) for item in value)
    return first, second


def _start_end(value: object) -> tuple[float, float]:
    start, end = _pair(value)
    if start < end:
        raise ValueError
    return start, end


def _lr_adjust(value: object) -> object:
    return value if callable(value) else _pair(value)


Count = Annotated[int, integer("an int >= 1", lambda n: n >= 1)]
Index = Annotated[int, integer("an int >= 0", lambda n: n >= 0)]
Seed = Annotated[int, integer("an int from 0 to 2**64 - 1", lambda n: 0 <= n < 2**64)]
Level = Annotated[int, integer("0, 1 or 2", lambda n: 0 <= n <= 2)]
Rate = Annotated[float, real("a number > 0", lambda x: x > 0)]
Penalty = Annotated[float, real("a number >= 0", lambda x: x >= 0)]
Share = Annotated[float, real("a number from 0 to 1", lambda x: 0 <= x <= 1)]
ShareBelowOne = Annotated[float, real("a number >= 0 and < 1", lambda x: 0 <= x < 1)]
Device = Annotated[
    str, string('"cpu", "cuda" or "cuda:N"', lambda device: bool(re.fullmatch(r"cpu|cuda(:[0-9]+)?", device)))
]
OpTypes = Annotated[
    tuple[str, ...] | list[str],
    strings(f"a list of one or more of {', '.join(TUNABLE_OP_TYPES)}", known=TUNABLE_OP_TYPES),
]
StartEnd = Annotated[tuple[float, float], Check("two numbers (start, end), start >= end > 0", _start_end)]
LrAdjust = Annotated[
    tuple[float, float] | Callable[[float], float] | None,
    optional(Check("two numbers > 0 (error threshold, new learning rate), or a callable", _lr_adjust)),
]
IndexOrNone = Annotated[int | None, optional(integer("an int >= 0", lambda n: n >= 0))]
Evaluator = Annotated[Callable[[Any], float] | None, optional(function)]
Solver = Annotated[
    Literal["auto", "gradient", "least_squares"],
    string(f"one of {', '.join(_SOLVERS)}", lambda solver: solver in _SOLVERS),
]

BalanceMethod = Annotated[Literal["max"], string('"max"', lambda method: method == "max")]
Passes = Annotated[int, integer("an int >= 1, or -1", lambda n: n >= 1 or n == -1)]
Integer = Annotated[int, integer("an int", lambda _: True)]
_METRICS = ("l2", "kl", "cosine", "sqnr", "psnr")
Metric = Annotated[str, string(f"one of {', '.join(_METRICS)}", lambda metric: metric in _METRICS)]
Real = Annotated[float, real("a number", lambda _: True)]
Text = Annotated[str, string("a str that is not empty", bool)]
Names = Annotated[tuple[str, ...], strings("a list of one or more names")]
NamesOrNone = Annotated[tuple[str, ...] | None, optional(strings("a list of one or more names"))]
CallableOrNone = Annotated[Callable[..., Any] | None, optional(function)]


@dataclass(frozen=True, repr=False)
class AlgoConfig(NamedConfig):
    """Abstract base of everything that `QConfig.algo_config` can list."""


@strict_keywords
@dataclass(frozen=True, kw_only=True, repr=False)
class FastFinetuneConfig(AlgoConfig):
    """The options that AdaRound and AdaQuant share. Abstract; the classes below differ in two defaults.

    Args:
        optim_device: where layers are tuned: "cpu", or "cuda" and "cuda:N", a GPU of AMD or NVIDIA by OpenCL. It makes
            moments and takes the steps of gradient loops; what the CPU does all the same is in the report. A device
            that cannot be used is an error, as that of infer_device is.
        infer_device: where onnxruntime runs the models: "cpu", "cuda" or "cuda:N", the latter with
            onnxruntime-gpu (NVIDIA) or onnxruntime-migraphx (AMD); what comes out is not
            what the CPU gives to the bit. A device that cannot be used is an error; with the environment
            variable QUARK_ONNX_DEVICE_FALLBACK=1 the CPU is used, and the report says so.
        fixed_seed: seeds everything that is random.
        data_size: how many calibration samples are used, at most; counts samples whatever the reader's batch.
        batch_size: samples per optimiser step.
        num_batches: the early-stop window in steps; 1 means num_iterations / 10.
        num_iterations: optimiser steps per layer.
        learning_rate: Adam's step size.
        early_stop: end a layer when the mean loss of a window is no better than that of the windows before.
        patience: how many windows in a row without improvement `early_stop` lets pass. Not in AMD Quark.
        output_index: the position of the model output that `selective_update` compares; None: all.
        lr_adjust: (threshold, new rate): a layer whose mean squared output error is above the threshold
            before it is tuned uses the new rate; or a callable from that error to the rate. None:
            `learning_rate` everywhere.
        target_op_type: the op types that are tuned. Where the weight (of normalizations: the scale) is not quantized,
            the report says so. Not in AMD Quark: GroupNormalization and BatchNormalization.
        selective_update: keep a layer only if the whole model gets better by it: if the L2 norm of quantized minus
            float output, mean over all samples and outputs of floats, falls; or as `evaluator` says. The nodes behind
            the layer are run again for it.
        evaluator: takes the place of that L2 norm: called with an onnxruntime.InferenceSession of the quantized model
            as it is now, Q/DQ computed as defined, it returns a finite number, higher is better. Called once before
            the first layer, and after each that was changed. Not in AMD Quark.
        update_bias: tune the bias too. None: yes with least squares, where the best bias has a closed form;
            no with the gradient solver, as in AMD Quark.
        output_qdq: judge the layer after the quantization of its output.
        drop_ratio: the share of input elements taken from the quantized model; the rest comes from the float
            one.
        mem_opt_level: 0 holds the data of all layers in memory, 1 that of one layer, 2 one batch, the rest in
            files.
        cache_dir: where level 2 puts its files; None: a temporary directory.
        log_period: steps between two lines of the log, at level DEBUG; a layer's last step is at INFO.
        ref_model_path: a float model with the same inputs, layers and outputs (the same model trained longer,
            say) that takes the float model's place in finetuning: layers are tuned towards its outputs,
            AdaRound rounds its weights down or up, and the report compares with it. Ranges and scales stay
            those of the model that is quantized.
        dynamic_batch: take all the data as one batch.
        parallel: gather all layers' inputs from the model as it is before finetuning, and tune layers side by
            side, each towards the output of its float weight on these inputs. The gradient solver then keeps the
            data of all layers. Not with `selective_update`.
        reg_param: weight of AdaRound's rounding regulariser.
        beta_range: (start, end) of the regulariser's exponent, annealed by a cosine.
        warm_start: share of the steps before the regulariser sets in.
        select_max_mem_layer: tune only the layer whose input and float output need the most memory.
        num_workers: loader processes of AMD Quark's level 2.
        pin_memory: page-locked buffers of AMD Quark's level 2.
        use_gds: GPU-direct file reading of AMD Quark's level 2.
        solver: "least_squares" solves each layer from the moments of its data, "gradient" runs the published
            loops, "auto" picks for each layer. Not in AMD Quark.
        keep_worse: keep all layers' new integers even if the whole model is worse by them, judged by the float outputs
            of samples that nothing was fitted to; False: the last layers are taken back, as many as needed for the best
            of some states in between, and a warning says so. With `evaluator` nothing is taken back. Not in AMD Quark.

    Raises:
        ConfigError: a wrong value, or two that do not go together.
        ConfigTypeError: a wrong type, or an unknown keyword.
    """

    optim_device: Device = "cpu"
    infer_device: Device = "cpu"
    fixed_seed: Seed = 1705472343
    data_size: Count = 1_000_000_000
    batch_size: Count = 1
    num_batches: Count = 1
    num_iterations: Count = 1000
    learning_rate: Rate = 0.1
    early_stop: Flag = False
    patience: Index = 0
    output_index: IndexOrNone = None
    lr_adjust: LrAdjust = None
    target_op_type: OpTypes = TUNABLE_OP_TYPES
    selective_update: Flag = False
    evaluator: Evaluator = None
    update_bias: FlagOrNone = None
    output_qdq: Flag = False
    drop_ratio: Share = 1.0
    mem_opt_level: Level = 1
    cache_dir: PathOrNone = None
    log_period: Count = 100
    ref_model_path: PathOrNone = None
    dynamic_batch: Flag = False
    parallel: Flag = False
    reg_param: Penalty = 0.01
    beta_range: StartEnd = (20.0, 2.0)
    warm_start: ShareBelowOne = 0.2
    select_max_mem_layer: Flag = False
    num_workers: Index = 1
    pin_memory: Flag = False
    use_gds: Flag = False
    solver: Solver = "auto"
    keep_worse: Flag = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self).__name__
        if self.evaluator is not None and not self.selective_update:
            raise ConfigError(problem(f"{kind}.evaluator", self.evaluator, "None, or selective_update=True with it"))
        if self.parallel and self.selective_update:
            expected = "False with selective_update, which needs each layer's result before the next"
            raise ConfigError(problem(f"{kind}.parallel", True, expected))


_Algorithm = TypeVar("_Algorithm", bound=FastFinetuneConfig)


def _with_shared_arguments(cls: type[_Algorithm]) -> type[_Algorithm]:
    """Puts the arguments of `FastFinetuneConfig` into the docstring, for `help()` shows no other class's."""
    if cls.__doc__ and FastFinetuneConfig.__doc__:  # neither is there under python -OO
        cls.__doc__ += "\n\n    Args:" + FastFinetuneConfig.__doc__.partition("Args:")[2]
    return cls


@_with_shared_arguments
@strict_keywords
@dataclass(frozen=True, kw_only=True, repr=False)
class AdaRoundConfig(FastFinetuneConfig):
    """AdaRound (arXiv 2004.10568): every weight is rounded down or up."""

    name: ClassVar[str] = "adaround"


@_with_shared_arguments
@strict_keywords
@dataclass(frozen=True, kw_only=True, repr=False)
class AdaQuantConfig(FastFinetuneConfig):
    """AdaQuant (arXiv 2006.10518): weights may move to any integer."""

    name: ClassVar[str] = "adaquant"

    num_iterations: Count = 3000
    learning_rate: Rate = 1e-5


@strict_keywords
@dataclass(frozen=True, repr=False)
class CLEConfig(AlgoConfig):
    """Cross-layer equalisation (arXiv 1906.04721, section 4.1), before quantization: of two layers that follow each
    other, output channels of the first are divided and input channels of the second multiplied, so that the ranges of
    their weights meet. What the float model computes stays as it is.

    Args:
        cle_balance_method: "max": a range is the largest absolute value. Nothing else is known.
        cle_steps: passes over all pairs; -1: until `cle_total_layer_diff_threshold`, at most 100.
        cle_weight_threshold: see `cle_scale_use_threshold`.
        cle_scale_append_bias: the bias of the first layer counts in its range.
        cle_scale_use_threshold: a channel whose two ranges together are below `cle_weight_threshold` stays as it is.
        cle_total_layer_diff_threshold: with cle_steps=-1 the passes end when the mean changes of the weights of both
            layers, added over all pairs, are below it.
        cle_over_clips: equalise over Clip(x, 0, h), ReLU6 say, as well, which becomes Relu and Min with a bound for
            each channel. The quantized model runs Min in float, which takes time. Not in AMD Quark.
        keep_worse: equalise even if the quantized model is worse by it, on samples that nothing was fitted to; it is
            not quantized without equalisation then, which saves the second calibration. Not in AMD Quark.
    """

    name: ClassVar[str] = "cle"

    cle_balance_method: BalanceMethod = "max"
    cle_steps: Passes = 1
    cle_weight_threshold: Penalty = 0.5
    cle_scale_append_bias: Flag = True
    cle_scale_use_threshold: Flag = True
    cle_total_layer_diff_threshold: Penalty = 1.9e-7
    cle_over_clips: Flag = True
    keep_worse: Flag = False


@strict_keywords
@dataclass(frozen=True, repr=False)
class BiasCorrectionConfig(AlgoConfig):
    """Bias correction (arXiv 1906.04721, section 4.2), after quantization and before finetuning: the mean over the
    calibration data of float minus quantized output, the latter on the quantized model's inputs, is added to the
    integer bias. An output keeps its bias if the new one is no better on samples held out.

    With AdaRound or AdaQuant the samples, devices and memory level are theirs. Least squares chooses biases anew; the
    gradient loops without `update_bias` keep these.

    Args:
        keep_worse: keep all biases even if the whole model is worse by them, on samples that nothing was fitted to. Not
            in AMD Quark.
    """

    name: ClassVar[str] = "bias_correction"

    keep_worse: Flag = False


@strict_keywords
@dataclass(frozen=True, repr=False)
class SmoothQuantConfig(AlgoConfig):
    """SmoothQuant (arXiv 2211.10438), with AMD Quark's options."""

    name: ClassVar[str] = "smooth_quant"

    alpha: Real = 0.5


@strict_keywords
@dataclass(frozen=True, repr=False)
class GPTQConfig(AlgoConfig):
    """GPTQ (arXiv 2210.17323), with AMD Quark's options."""

    name: ClassVar[str] = "gptq"

    bits: Integer = 8
    block_size: Integer = 128
    group_size: Integer = -1
    perc_damp: Real = 0.01
    act_order: Flag = False
    per_channel: Flag = False
    mse: Flag = False
    weight_symmetric: Flag = True


@strict_keywords
@dataclass(frozen=True, repr=False)
class QuarotConfig(AlgoConfig):
    """QuaRot (arXiv 2404.00456), with AMD Quark's options."""

    name: ClassVar[str] = "quarot"

    r_matrix_dim: Integer = 4096
    use_random_had: Flag = False
    r_config_path: PathOrNone = None


@strict_keywords
@dataclass(frozen=True, repr=False)
class AutoMixprecisionConfig(AlgoConfig):
    """A search for the layers that get another format, with AMD Quark's options: the fewest bits that keep to a
    threshold, each layer with the specs of the configuration or those of `target_layer_config`. `Target` says what it
    wants in units of its own.

    Args:
        target_layer_config: the other specs, with fewer bits than the configuration's, or more.
        target_op_type: the operators of the layers that may have them.
        subgraph_json: must be None.
        include_layers, exclude_layers: names of nodes: only these, and none of these.
        data_size: measure on so many samples at most; 0: all of those that are set apart.
        metric_output_index: of the output that a distance is taken of.
        metric_distance_fn: takes this output of the float model and of the quantized one, arrays of an item.
        metric_evaluate_fn: takes an onnxruntime.InferenceSession, gives a score, of which more is better.
        metric_default: "l2", "kl", "cosine" (1 less it), "sqnr" or "psnr" (both in dB), where no function is given.
        metric_threshold: a distance, at most; a score, or dB, at least. 0: a signal to noise ratio of 30 dB.
        metric_optimize_object: has no effect, as the fields below; the report says why.
        sensitivity_cache_file: has no effect.
        worker_num: has no effect.
        dual_quant_nodes: has no effect.
        no_input_qdq_shared: has no effect.
        shared_param_mode: has no effect.
    """

    name: ClassVar[str] = "auto_mixprecision"

    target_layer_config: Annotated[QLayerConfig, instance(QLayerConfig)]
    target_op_type: Names = ("Conv", "ConvTranspose", "Gemm", "MatMul")
    subgraph_json: PathOrNone = None
    include_layers: NamesOrNone = None
    exclude_layers: NamesOrNone = None
    data_size: Index = 0
    metric_output_index: Index = 0
    metric_distance_fn: CallableOrNone = None
    metric_evaluate_fn: CallableOrNone = None
    metric_default: Metric = "l2"
    metric_threshold: Real = 0.0
    metric_optimize_object: Text = "speed"
    sensitivity_cache_file: PathOrNone = None
    worker_num: Integer = 1
    dual_quant_nodes: Flag = False
    no_input_qdq_shared: Flag = False
    shared_param_mode: Text = "propagate"
