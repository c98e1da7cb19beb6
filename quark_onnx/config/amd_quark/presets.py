"""Ready configurations by AMD Quark's names.

Every name is there. Where a configuration asks for something that is not there yet, `ModelQuantizer` says what.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from quark.onnx.config.algorithm import AdaQuantConfig, AdaRoundConfig, AlgoConfig, AutoMixprecisionConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.ready import list_ready
from quark.onnx.config.spec import (
    BFloat16Spec,
    BFP16Spec,
    Float16Spec,
    Int8Spec,
    Int16Spec,
    MX4Spec,
    MX6Spec,
    MX9Spec,
    MXFP4E2M1Spec,
    MXFP6E2M3Spec,
    MXFP6E3M2Spec,
    MXFP8E4M3Spec,
    MXFP8E5M2Spec,
    MXInt8Spec,
    QLayerConfig,
    QTensorConfig,
    UInt8Spec,
    UInt16Spec,
    XInt8Spec,
)

from .open_config import opened

__all__ = [
    "HANDED_OUT",
    "PRESETS",
    "DefaultConfigMapping",
    "get_default_config",
    "get_default_config_mapping",
    "handed_out",
]

_SEED = 1705472343
# What AMD Quark sets besides means nothing here, and the report would say so of options that nobody wrote.
_ALIGNED = {"ForceQuantizeNoInputCheck": True}
_ALL_OPS = {"QuantizeAllOpTypes": True, "ConvertClipToRelu": True}


def _config(
    activation: QTensorConfig, weight: QTensorConfig, *algorithms: AlgoConfig, options: Mapping[str, Any] = _ALIGNED
) -> QConfig:
    layer = QLayerConfig(input_tensors=activation, weight=weight)
    return QConfig(layer, algo_config=algorithms, extra_options={"MaxFloatShare": 0.0, **options})


def _with(config: QConfig, algorithm: AlgoConfig) -> QConfig:
    return replace(config, algo_config=(algorithm,))


_ROUND = AdaRoundConfig(learning_rate=0.1, num_iterations=1000)
_QUANT = AdaQuantConfig(learning_rate=1e-5, num_iterations=3000)

_XINT8 = _config(XInt8Spec(), XInt8Spec(), options={"ForceQuantizeNoInputCheck": True})
_XINT8_ADAROUND = _with(_XINT8, _ROUND)
_XINT8_ADAQUANT = _with(_XINT8, _QUANT)
_VINT8 = _config(Int8Spec(), Int8Spec(), options=_ALL_OPS)
_A8W8 = _config(Int8Spec(), Int8Spec())
_A8W8_ADAROUND = _with(_A8W8, _ROUND)
_A8W8_ADAQUANT = _with(_A8W8, _QUANT)
_A16W8 = _config(Int16Spec(), Int8Spec(), options=_ALIGNED)
_A16W8_ADAROUND = _with(_A16W8, _ROUND)
_A16W8_ADAQUANT = _with(_A16W8, _QUANT)
_BF16 = _config(BFloat16Spec(), BFloat16Spec(), options={})
_BFP16 = _config(BFP16Spec(), BFP16Spec(), options={})

_QCONFIGS: Mapping[str, QConfig] = {
    "XINT8_QCONFIG": _XINT8,
    "XINT8_ADAROUND_QCONFIG": _XINT8_ADAROUND,
    "XINT8_ADAQUANT_QCONFIG": _XINT8_ADAQUANT,
    "VINT8_QCONFIG": _VINT8,
    "A8W8_QCONFIG": _A8W8,
    "A8W8_ADAROUND_QCONFIG": _A8W8_ADAROUND,
    "A8W8_ADAQUANT_QCONFIG": _A8W8_ADAQUANT,
    "A16W8_QCONFIG": _A16W8,
    "A16W8_ADAROUND_QCONFIG": _A16W8_ADAROUND,
    "A16W8_ADAQUANT_QCONFIG": _A16W8_ADAQUANT,
    "BF16_QCONFIG": _BF16,
    "BFP16_QCONFIG": _BFP16,
}

# What the configurations of `get_default_config` finetune with, under the names of the extra option FastFinetune.
_PARAMS = {"FixedSeed": _SEED, "DataSize": 1000, "BatchSize": 2, "NumIterations": 1000, "EarlyStop": True}
_DEVICES = {"OptimDevice": "cpu", "InferDevice": "cpu"}
DEFAULT_PARAMS: Mapping[str, Mapping[str, Any]] = {
    "DEFAULT_ADAROUND_PARAMS": {"OptimAlgorithm": "adaround", **_DEVICES, **_PARAMS, "LearningRate": 0.1},
    "DEFAULT_ADAQUANT_PARAMS": {"OptimAlgorithm": "adaquant", **_DEVICES, **_PARAMS, "LearningRate": 1e-5},
}
_DEFAULT_ROUND = AdaRoundConfig(data_size=1000, batch_size=2, num_iterations=1000, learning_rate=0.1, early_stop=True)
_DEFAULT_QUANT = AdaQuantConfig(
    data_size=1000, batch_size=2, num_iterations=1000, learning_rate=1e-5, early_stop=True, update_bias=True
)


def _presets() -> Iterator[tuple[str, QConfig]]:
    def plain(activation: QTensorConfig, weight: QTensorConfig, *algorithms: AlgoConfig) -> QConfig:
        return _config(activation, weight, *algorithms, options={})

    def mixed(most: QTensorConfig, others: QTensorConfig) -> QConfig:
        target = QLayerConfig(input_tensors=others, weight=others)
        return plain(most, most, AutoMixprecisionConfig(target_layer_config=target))

    yield "UINT8_DYNAMIC_QUANT", _config(UInt8Spec(), UInt8Spec(), options={"UseDynamicQuant": True})
    yield "VINT8", _VINT8
    yield "U8U8_AAWA", plain(UInt8Spec(), UInt8Spec())
    integers = {
        "XINT8": _XINT8,
        "S8S8_AAWS": plain(Int8Spec(symmetric=False), Int8Spec()),
        "U8S8_AAWS": plain(UInt8Spec(), Int8Spec()),
        "S16S8_ASWS": plain(Int16Spec(), Int8Spec()),
        "U16S8_AAWS": plain(UInt16Spec(), Int8Spec()),
        "A8W8": _A8W8,
        "A16W8": _A16W8,
    }
    for name, config in integers.items():
        yield name, config
        yield f"{name}_ADAROUND", _with(config, _DEFAULT_ROUND)
        yield f"{name}_ADAQUANT", _with(config, _DEFAULT_QUANT)
    floats = {
        "FP16": Float16Spec(), "BF16": BFloat16Spec(), "BFP16": BFP16Spec(), "MX4": MX4Spec(), "MX6": MX6Spec(),
        "MX9": MX9Spec(), "MXFP8E5M2": MXFP8E5M2Spec(), "MXFP8E4M3": MXFP8E4M3Spec(), "MXFP6E3M2": MXFP6E3M2Spec(),
        "MXFP6E2M3": MXFP6E2M3Spec(), "MXFP4E2M1": MXFP4E2M1Spec(), "MXINT8": MXInt8Spec(),
    }  # fmt: skip
    for name, spec in floats.items():
        yield name, plain(spec, spec)
        yield f"{name}_ADAQUANT", _with(plain(spec, spec), _DEFAULT_QUANT)
    yield "S16S16_MIXED_S8S8", mixed(Int16Spec(), Int8Spec())
    for name, others in (("BFP16", BFP16Spec()), ("MXINT8", MXInt8Spec())):
        both = mixed(BFloat16Spec(), others)
        yield f"BF16_MIXED_{name}", both
        yield f"BF16_MIXED_{name}_ADAQUANT", replace(both, algo_config=(*both.algo_config, _DEFAULT_QUANT))
        yield f"BF16_{name}", plain(BFloat16Spec(), others)
    yield "MX9_INT8", plain(MX9Spec(), Int8Spec())
    for kind in ("CNN", "TRANSFORMER"):
        for name, config in (("INT8", plain(UInt8Spec(), Int8Spec())), ("INT16", plain(Int16Spec(), Int16Spec()))):
            yield f"{name}_{kind}_DEFAULT", config
            yield f"{name}_{kind}_ACCURATE", _with(config, _DEFAULT_ROUND)
    yield "MATMUL_NBITS", _config(Int8Spec(), Int8Spec(), options={"UseMatMulNBits": True})


HANDED_OUT = (*_QCONFIGS, *DEFAULT_PARAMS)
PRESETS: Mapping[str, QConfig] = MappingProxyType(dict(_presets()))
DefaultConfigMapping = PRESETS  # as AMD Quark calls it
list_ready({name: partial(opened, config) for name, config in PRESETS.items()})


def get_default_config_mapping() -> Mapping[str, QConfig]:
    """All ready configurations by name."""
    return PRESETS


def get_default_config(name: str) -> QConfig:
    """The ready configuration of this name, a key of `get_default_config_mapping()`.

    It may be changed until a quantizer takes its copy.

    Raises:
        ConfigError: there is none.
    """
    return QConfig.get_default_config(name)


def handed_out(name: str) -> Any:
    """What scripts import by one of the names of `HANDED_OUT`: a copy of their own, which they may change.

    Raises:
        KeyError: it is none of these.
    """
    if name in DEFAULT_PARAMS:
        return dict(DEFAULT_PARAMS[name])
    return opened(_QCONFIGS[name])
