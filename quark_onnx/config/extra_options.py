"""The options of `QConfig.extra_options`: those that are in effect, and those of AMD Quark that are not, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypedDict

from quark.onnx.errors import ConfigError

from .frozen import FrozenMapping
from .validate import Check, Flag, boolean, checks, integer, nearest, optional, real, string, strings

__all__ = ["FIXED_OPTIONS", "MEANINGLESS_OPTIONS", "ExtraOptions", "known_options"]


def _named_type(value: object) -> str:
    """onnxruntime's QuantType.QInt8 and the like by name, as they are written to a dict and read from it."""
    name = getattr(value, "name", value)
    if not isinstance(name, str):
        raise TypeError
    return name


_NUMBER = real("a number", lambda _: True)
_INTEGER = integer("an int", lambda _: True)
_OVERRIDES = {
    "quant_type": Check("a QuantType", _named_type),
    "symmetric": boolean,
    "axis": _INTEGER,
    "scale": real("a number > 0", lambda x: x > 0),
    "zero_point": _INTEGER,
    "rmin": _NUMBER,
    "rmax": _NUMBER,
    "reduce_range": boolean,
}


def _frozen(value: object) -> Any:
    """Lists become tuples and dicts FrozenMappings, all the way down."""
    if isinstance(value, Mapping):
        return FrozenMapping({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _by_name(expected: str, convert: Callable[[Any], Any]) -> Check:
    def checked(value: object) -> FrozenMapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise TypeError
        return FrozenMapping({name: convert(item) for name, item in value.items()})

    return Check(expected, checked)


def _shape(value: Any) -> tuple[int, ...]:
    size = integer("", lambda n: n >= 1).convert
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(size(item) for item in value)


def _data_range(value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise TypeError
    low, high = map(_NUMBER.convert, value)
    if low > high:
        raise ValueError
    return low, high


def _overrides(value: Any) -> tuple[FrozenMapping[str, Any], ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise TypeError
    if not value:
        raise ValueError
    return tuple(FrozenMapping({key: _override(key, entry) for key, entry in item.items()}) for item in value)


def _override(key: object, value: Any) -> Any:
    if key not in _OVERRIDES:
        raise ValueError(f"the keys {', '.join(_OVERRIDES)}; {key!r} is none, {nearest(str(key), _OVERRIDES)}")
    check = _OVERRIDES[str(key)]
    try:
        return check.convert(value.item() if hasattr(value, "item") else value)  # onnxruntime wants arrays
    except (TypeError, ValueError) as error:
        raise type(error)(f"for {key!r} {check.expected}") from None


def _options(value: object) -> FrozenMapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError
    frozen: FrozenMapping[str, Any] = _frozen(value)
    return frozen


_PERCENT = real("a number above 0, at most 100", lambda x: 0 < x <= 100)


def _percentiles(value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    if not value:
        raise ValueError
    return tuple(_PERCENT.convert(item) for item in value)


OpTypes = Annotated[tuple[str, ...] | list[str], strings("a list of op types")]


class ExtraOptions(TypedDict, total=False):
    """What is in effect of `QConfig.extra_options`. The names are AMD Quark's, except NumThreads, MaxMemory,
    MaxFloatShare and BlockSize.

    Keys:
        NumThreads: threads of onnxruntime and of the solvers, 1 to 1024; as many as there are cores when absent.
        MaxMemory: MiB of resident memory that the process may have; when absent, what the machine, its control groups
            and RLIMIT_AS leave. What does not fit is done in a way that takes less, or left out; the report says so.
        MaxFloatShare: how much of the activations, 0 to 1 of their values, may stay in float because their quantizers
            alone destroy the model (docs/islands.md); 0 quantizes all of them. 0.35 when absent, and 0 where the scales
            of activations are powers of two, which are for devices without floats.
        OpTypesToQuantize: the only op types to quantize; those of docs/compatibility.md when absent.
        ExtraOpTypesToQuantize: op types to quantize as well.
        QuantizeAllOpTypes: quantize all op types of the model.
        NodesToQuantize: the only nodes to quantize, out of those with these op types.
        MatMulConstBOnly: leave a MatMul without a constant input in float.
        ForceQuantizeNoInputCheck: quantize views (Transpose, Reshape, MaxPool, ...) of tensors that nobody else
            quantizes.
        QuantizeBias: False leaves biases in float.
        Int32Bias: False gives biases the type of the weight and a scale of their own; when absent False where the
            scales of a layer's input and weight are powers of two, else True.
        FuseGelu, FuseLayerNorm: False leaves the graphs of a Gelu, of a LayerNormalization, as they are, and does not
            raise the opset for them; True when absent (docs/patterns.md).
        TensorQuantOverrides: tensor -> list of one dict, or for a weight one per channel, with some of quant_type
            (QInt8, QUInt8, QInt16, QUInt16, of weights QInt4, QUInt4), symmetric, axis, scale and zero_point, rmin and
            rmax, reduce_range: onnxruntime's option of this name. Comes before all specs.
        BlockSize: how many inputs share a scale with QuantGranularity.Group; 32 when absent. onnxruntime's name.
        RemoveQDQConvRelu, RemoveQDQConvLeakyRelu, RemoveQDQConvPRelu, RemoveQDQConvClip: whether there is no Q/DQ
            between a layer (Conv, Gemm, Add, a pooling, ...) and that activation (Clip: to [0, 6] or [0, 1]) behind it.
            When absent True where activations are symmetric and their scales powers of two, else False.
        Percentile: the share, in percent, of a tensor's values that its range holds; 99.999 when absent.
        PercentileCandidates: those of LayerwisePercentile; 99.99, 99.999 and 99.99999 when absent.
        LWPMetric: the error that LayerwisePercentile goes by: "mae", the mean absolute one (when absent), or "mse".
        NumQuantizedBins: levels of Entropy, an even number; 128 when absent.
        CalibTensorRangeSymmetric: of activations. True: percentiles are those of abs(x), and MinMax puts both ends as
            far from 0 as the farther one. False: each end has its own. When absent: True for percentiles, False for
            MinMax.
        CalibDataSize: calibrate with the reader's items that hold the first so many samples, of which some are set
            apart to compare whole models (docs/decisions/0015-whole-models.md); all when absent. Finetuning has
            `data_size`.
        UseRandomData: calibrate with `RandomDataReader` where neither a reader nor a path is given.
        RandomDataReaderInputShape: input -> its shape.
        RandomDataReaderInputDataRange: input -> (lowest, highest), of every input; None: 0 to 1.
        FastFinetune: AMD Quark's names for keywords of AdaRoundConfig and AdaQuantConfig ("DataSize", ...); what stands
            here comes before what the algorithm in `algo_config` says.
    """

    NumThreads: Annotated[int, integer("an int from 1 to 1024", lambda n: 1 <= n <= 1024)]
    MaxMemory: Annotated[int, integer("an int >= 1, of MiB", lambda n: n >= 1)]
    MaxFloatShare: Annotated[float, real("a number from 0 to 1", lambda x: 0 <= x <= 1)]
    OpTypesToQuantize: OpTypes
    ExtraOpTypesToQuantize: OpTypes
    QuantizeAllOpTypes: Flag
    NodesToQuantize: Annotated[tuple[str, ...] | list[str], strings("a list of node names")]
    MatMulConstBOnly: Flag
    ForceQuantizeNoInputCheck: Flag
    QuantizeBias: Flag
    Int32Bias: Flag
    FuseGelu: Flag
    FuseLayerNorm: Flag
    TensorQuantOverrides: Annotated[
        Mapping[str, Any], _by_name("a dict from tensor to a list of one or more dicts", _overrides)
    ]
    BlockSize: Annotated[int, integer("an int >= 2", lambda n: n >= 2)]
    RemoveQDQConvRelu: Flag
    RemoveQDQConvLeakyRelu: Flag
    RemoveQDQConvPRelu: Flag
    RemoveQDQConvClip: Flag
    Percentile: Annotated[float, _PERCENT]
    PercentileCandidates: Annotated[
        tuple[float, ...] | list[float], Check("a list of numbers above 0, at most 100", _percentiles)
    ]
    LWPMetric: Annotated[Literal["mae", "mse"], string('"mae" or "mse"', lambda metric: metric in ("mae", "mse"))]
    NumQuantizedBins: Annotated[int, integer("an even int from 2 to 4096", lambda n: 2 <= n <= 4096 and n % 2 == 0)]
    CalibTensorRangeSymmetric: Flag
    CalibDataSize: Annotated[int, integer("an int >= 1", lambda n: n >= 1)]
    UseRandomData: Flag
    RandomDataReaderInputShape: Annotated[
        Mapping[str, Any], _by_name("a dict from input to a list of ints >= 1", _shape)
    ]
    RandomDataReaderInputDataRange: Annotated[
        Mapping[str, Any] | None, optional(_by_name("a dict from input to [lowest, highest]", _data_range))
    ]
    FastFinetune: Annotated[Mapping[str, Any], Check("a dict from option to value", _options)]


_INTEGERS = "it is for float formats, which need AMD Quark's custom operators"
_PREPARED = "the model is always prepared in the same way"
_REPLACED = "operators are never replaced by others: change the model before"
_BOTH_SIDES = "Q/DQ stays, except where an asymmetric quantizer's range does the work of the activation before it"
_DRAWN = "onnxruntime's placement of Q/DQ is kept"
_RERUN = "nothing is saved of a run that did not end"

# Options of which one value is what happens here in any case: name -> (the values accepted, why no other is).
FIXED_OPTIONS: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "ActivationScaled": ((False,), _INTEGERS),
    "ActivationSymmetric": ((), "give `symmetric` to the spec of the activations"),
    "AddQDQPairToWeight": ((False,), "weights are stored as integers"),
    "AdjustBiasScale": ((True,), "an int32 bias has the scale input_scale * weight_scale"),
    "AdjustWeightScaleForInt32Bias": ((True,), "the weight's scale always grows where the bias would overflow"),
    "CalibMovingAverage": ((False,), "minimum and maximum are those of all data"),
    "CalibPassthroughOpTypes": ((None, ()), "operators that move values share their input's parameters in any case"),
    "ConvertBNToConv": ((False,), _REPLACED),
    "ConvertClipToRelu": ((False,), _REPLACED),
    "ConvertFP16ToFP32": ((False,), "give the float32 model"),
    "ConvertNCHWToNHWC": ((False,), _REPLACED),
    "ConvertOpsetVersion": ((None,), "convert the model before, with onnx.version_converter"),
    "ConvertReduceMeanToGlobalAvgPool": ((False,), _REPLACED),
    "ConvertSplitToSlice": ((False,), _REPLACED),
    "CopySharedInit": ((None,), "initializers that several nodes share stay shared"),
    "CryptoMode": ((False,), "nothing is encrypted"),
    "DedicatedQDQPair": ((False,), _DRAWN),
    "EnableDualQuantNodePairs": ((False,), "a tensor between two formats has one of them"),
    "EnableSubgraph": ((False,), "the bodies of If, Loop and Scan stay in float"),
    "EncryptionAlgorithm": ((None,), "nothing is encrypted"),
    "EvalDataReader": ((None,), "with finetuning, the report compares the models on held-out calibration data"),
    "EvalMetrics": ((False,), "with finetuning, the report compares the models on held-out calibration data"),
    "ExecutionProviders": (
        (None, ("CPUExecutionProvider",)), 'a GPU is asked for with infer_device="cuda:0" of the algorithm',
    ),
    "FillAllValueInfo": ((False,), "infer the shapes of the result with onnx.shape_inference"),
    "FixShapes": ((None,), "fix the shapes of the model before, with onnxruntime.tools.make_dynamic_shape_fixed"),
    "FoldBatchNorm": ((True,), _PREPARED),
    "Int16Bias": ((False,), "give a spec to the biases: QLayerConfig(bias=Int16Spec())"),
    "Int16Scale": ((False,), "give `scale_type` to the specs"),
    "NodesToExcludeOutputQuantization": ((None, ()), _DRAWN),
    "OpTypesToExcludeOutputQuantization": ((None, ()), _DRAWN),
    "OptimizeModel": ((True,), _PREPARED),
    "PreprocessYAML": ((None,), _PREPARED),
    "QDQOpTypePerChannelSupportToAxis": ((None, {}), "per channel always means the axis of the output channels"),
    "QuantizationPreference": ((None,), "set the options that it stands for"),
    "QuantizeFP16": ((False,), "give the float32 model"),
    "RemoveInputInit": ((True,), _PREPARED),
    "RemoveQDQBetweenOps": ((None, ()), _DRAWN),
    "RemoveQDQConvGelu": ((False,), _BOTH_SIDES),
    "RemoveQDQInstanceNorm": ((False,), _BOTH_SIDES),
    "RemoveQDQMulAdd": ((False,), _DRAWN),
    "ReplaceClip6Relu": ((False,), _REPLACED),
    "SaveAndRestore": ((None,), _RERUN),
    "SaveTensorHistFig": ((False,), "nothing is drawn"),
    "SimplifyModel": ((True,), _PREPARED),
    "SimplifyModelOptions": ((None, {}), _PREPARED),
    "SkipPreprocess": ((False,), _PREPARED),
    "SplitLargeKernelPool": ((False,), _REPLACED),
    "TensorsRangeFile": ((None,), _RERUN),
    "UseDynamicQuant": ((False,), "ranges of activations are constants of the model"),
    "UseFP32Scale": ((False,), "scales are float32"),
    "UseMatMulNBits": ((False,), "weights of MatMul get Q/DQ as all others"),
    "UseUnsignedReLU": ((False,), "give the layers with a Relu an asymmetric spec"),
    "UserCustomOpLibPath": ((None,), "onnxruntime runs the models with its own operators only"),
    "WeightCalibrateMethod": ((None,), "give `calibration_method` to the spec of the weights"),
    "WeightScaled": ((False,), _INTEGERS),
    "WeightSymmetric": ((), "give `symmetric` to the spec of the weights"),
    "WeightsOnly": ((False,), "activations are quantized too"),
}  # fmt: skip

_NPU = "it is for NPUs, whose limits and shifts of scales are not looked at"
_ONE_PASS = "calibration is one pass, on NumThreads threads, whose memory does not grow with the data"
_OTHER_FORMAT = "it belongs to a format that is not used"

# Options that are accepted and reported as having no effect: name -> why.
MEANINGLESS_OPTIONS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "AdjustHardSigmoid", "AdjustShiftBias", "AdjustShiftCut", "AdjustShiftRead", "AdjustShiftSwish",
            "AdjustShiftWrite", "AlignConcat", "AlignEltwiseQuantType", "AlignPad", "AlignPool", "AlignReshape",
            "AlignSlice", "AlignTranspose", "ConvertAvgPoolToDPUVersion", "ConvertClipToDPUVersion",
            "ConvertHardSigmoidToDPUVersion", "ConvertLeakyReluToDPUVersion", "ConvertReduceMeanToDPUVersion",
            "ConvertSigmoidToHardSigmoid", "ConvertSoftmaxToDPUVersion", "EnableNPUCnn", "EnableNPUTransformer",
            "FoldRelu", "MaxLoopNum", "NPULimitationCheck", "SimulateDPU",
        ),
        _NPU,
    ),
    **dict.fromkeys(("CalibOptimizeDisk", "CalibOptimizeMem", "CalibWorkerNum"), _ONE_PASS),
    **dict.fromkeys(
        ("BF16QDQToCast", "BF16WithClip", "EnableVaimlBF16", "MatMulNBitsParams", "RefineBlockAxis", "RemoveFusedQDQ"),
        _OTHER_FORMAT,
    ),
    **dict.fromkeys(("FuseInstanceNorm", "FuseL2Norm"), "graphs of these are left as they are"),
    "CalibMovingAverageConstant": "minimum and maximum are those of all data",
    "LWPUseHistogram": "LayerwisePercentile always goes by the histogram",
    "MinMSEModeFloatScale": "MinMSE has one way to search, docs/numerics.md",
    "MinMSEModePof2Scale": "MinMSE has one way to search, docs/numerics.md",
    "Scenario": "it is for 8-bit floats: of integers, Distribution takes the largest |x|",
    "CopyBiasInit": "each layer gets a bias of its own in any case",
    "DebugMode": "set the level of the logger quark.onnx",
    "IgnoreWarnings": "Python's filters of warnings are left alone",
    "NumBins": "histograms have 4096 bins on each side of 0",
    "PrintSummary": "print(quantizer.report) shows what was done",
    "TmpDir": "files on the way lie in cache_dir, without names: with mem_opt_level=2, or where memory is short",
}  # fmt: skip


@cache
def known_options() -> Mapping[str, Check]:
    """The check of every option, by name."""
    anything = Check("", _frozen)
    return MappingProxyType({**checks(ExtraOptions), **dict.fromkeys((*FIXED_OPTIONS, *MEANINGLESS_OPTIONS), anything)})


def extra_options(value: Mapping[str, object]) -> FrozenMapping[str, Any]:
    """The options given, checked and unchangeable.

    Raises:
        ConfigError: an unknown name, or a wrong value; TypeError: no dict.
    """
    if not isinstance(value, Mapping):
        raise TypeError
    known = known_options()
    for key in value:
        if key not in known:
            hint = nearest(str(key), known)
            raise ConfigError(f"QConfig.extra_options: got the unknown option {key!r}; {hint}")
    where = "QConfig.extra_options[{!r}]"
    return FrozenMapping({key: known[key](where.format(key), item) for key, item in value.items()})
