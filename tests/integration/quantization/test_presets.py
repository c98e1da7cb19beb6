"""Ready configurations by AMD Quark's names: all are there; each builds and runs, or says what is missing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from quantized_tensors import QuantizedModel
from small_models import Reader, mean_squared_error, run, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Config,
    ConfigError,
    ConfigTypeError,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantizationConfig,
    UInt8Spec,
    UnsupportedError,
    XInt8Spec,
)
from quark.onnx.quantization.config import (
    DefaultConfigMapping,
    custom_config,
    get_default_config,
    get_default_config_mapping,
)

WITH_BOTH = ["XINT8", "S8S8_AAWS", "U8S8_AAWS", "S16S8_ASWS", "A8W8", "A16W8", "U16S8_AAWS"]
WITH_ADAQUANT = [
    "FP16", "BF16", "BFP16", "MX4", "MX6", "MX9", "MXFP8E5M2", "MXFP8E4M3", "MXFP6E3M2", "MXFP6E2M3", "MXFP4E2M1",
    "MXINT8", "BF16_MIXED_BFP16", "BF16_MIXED_MXINT8",
]  # fmt: skip
NAMES = [
    "UINT8_DYNAMIC_QUANT", "VINT8", "U8U8_AAWA", "S16S16_MIXED_S8S8", "BF16_BFP16", "BF16_MXINT8", "MX9_INT8",
    "MATMUL_NBITS",
    *(f"INT{n}_{kind}_{end}" for n in (8, 16) for kind in ("CNN", "TRANSFORMER") for end in ("DEFAULT", "ACCURATE")),
    *(f"{name}{end}" for name in WITH_BOTH for end in ("", "_ADAROUND", "_ADAQUANT")),
    *(f"{name}{end}" for name in WITH_ADAQUANT for end in ("", "_ADAQUANT")),
]  # fmt: skip
READY = [name for name in quark.onnx.__all__ if name.endswith("_QCONFIG")]

# What of the configurations can be carried out: the type of activations, whether they are symmetric, that of weights.
INTEGERS = {
    "XINT8": ("int8", True, "int8"),
    "A8W8": ("int8", True, "int8"),
    "S8S8_AAWS": ("int8", False, "int8"),
    "U8S8_AAWS": ("uint8", False, "int8"),
    "U8U8_AAWA": ("uint8", False, "uint8"),
    "INT8_CNN_DEFAULT": ("uint8", False, "int8"),
    "INT8_CNN_ACCURATE": ("uint8", False, "int8"),
    "INT8_TRANSFORMER_DEFAULT": ("uint8", False, "int8"),
    "INT8_TRANSFORMER_ACCURATE": ("uint8", False, "int8"),
    "S16S8_ASWS": ("int16", True, "int8"),
    "A16W8": ("int16", True, "int8"),
    "U16S8_AAWS": ("uint16", False, "int8"),
    "INT16_CNN_DEFAULT": ("int16", True, "int16"),
    "INT16_CNN_ACCURATE": ("int16", True, "int16"),
    "INT16_TRANSFORMER_DEFAULT": ("int16", True, "int16"),
    "INT16_TRANSFORMER_ACCURATE": ("int16", True, "int16"),
}
MIXED = "S16S16_MIXED_S8S8"  # of the two types
SUPPORTED = {name: INTEGERS[name.replace("_ADAROUND", "").replace("_ADAQUANT", "")] for name in NAMES if
             name.replace("_ADAROUND", "").replace("_ADAQUANT", "") in INTEGERS}  # fmt: skip

# What is missing for the others.
MISSING = {
    "UINT8_DYNAMIC": "ranges of activations are constants",
    "VINT8": "ConvertClipToRelu",
    "MATMUL_NBITS": "UseMatMulNBits",
    "FP16": "Float16",
    "BF16": "BFloat16",
    "BFP16": "BFP16",
    **{name: name for name in WITH_ADAQUANT if name.startswith("MX") and name != "MXINT8"},
    "MXINT8": "MXInt8",
}


def test_every_name_is_there() -> None:
    assert len(NAMES) == 65
    assert sorted(DefaultConfigMapping) == sorted(NAMES)
    assert get_default_config_mapping() is DefaultConfigMapping
    for name in NAMES:
        config = QConfig.get_default_config(name)
        assert isinstance(config, QConfig)
        assert (
            config == get_default_config(name) == getattr(custom_config, f"{name}_CONFIG") == DefaultConfigMapping[name]
        )
        assert config is not get_default_config(name), "each may be changed"
        assert f"{name}_CONFIG" in dir(custom_config)
        assert QConfig.from_dict(config.to_dict()) == config
        assert Config(global_quant_config=config) is config


def quantized(config: QConfig) -> onnx.ModelProto:
    model = separable_cnn()
    quantizer = ModelQuantizer(config)
    result = quantizer.quantize_model(model, None, Reader(samples(model, 24), batch=4))
    assert quantizer.report.algorithm == (config.fast_finetune and config.fast_finetune.name)
    onnx.checker.check_model(result, full_check=True)
    data = samples(model, 16, seed=1)
    assert mean_squared_error(model, result, data) < 0.3
    plain, optimised = run(result, data)[0], run(result, data, optimise=True)[0]
    assert np.abs(plain - optimised).max() < 0.03 * np.ptp(plain)
    return result


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_supported_one_builds_and_runs(name: str) -> None:
    activation, symmetric, weight = SUPPORTED[name]
    found = QuantizedModel(quantized(QConfig.get_default_config(name)))
    relus = {node for node, n in found.nodes.items() if n.op_type in ("Relu", "Clip")}
    assert bool(relus) == symmetric
    for node in ("stem", "dw1", "pw1", "dw2", "pw2", "classes"):
        assert (found.input(node).kind, found.input(node).symmetric) == (activation, symmetric)
        assert (found.input(node, 1).kind, found.input(node, 1).scales) == (weight, 1)
        assert found.input(node, 1).symmetric == (weight != "uint8")
        bias = "int8" if name.startswith("XINT8") else "int32"
        assert (found.input(node, 2).kind, found.input(node, 2).zero) == (bias, (0,))
    assert found.output("classes").kind == activation


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SUPPORTED and name != MIXED])
def test_any_other_says_what_is_missing(name: str) -> None:
    config = QConfig.get_default_config(name)
    missing = next(MISSING[start] for start in sorted(MISSING, key=len, reverse=True) if name.startswith(start))
    with pytest.raises(UnsupportedError, match=missing):
        ModelQuantizer(config)


def test_the_mixed_one_has_both_types() -> None:
    """As few of the Int16 layers as 30 dB need."""
    model = separable_cnn()
    quantizer = ModelQuantizer(QConfig.get_default_config(MIXED))
    result = quantizer.quantize_model(model, None, samples(model, 32))
    said = quantizer.report.target
    assert said.reached
    assert set(said.weights) | set(said.activations) == {"Int8", "Int16"}
    found = QuantizedModel(result)
    kinds = [found.input(node, at).kind for node in ("stem", "dw1", "pw1", "dw2", "pw2", "classes") for at in (0, 1)]
    assert set(kinds) == {"int8", "int16"}


@pytest.mark.parametrize("name", READY)
def test_ready_configurations(name: str) -> None:
    config = getattr(quark.onnx, name)
    assert config == getattr(custom_config, name)
    assert config is not getattr(quark.onnx, name), "each may be changed"
    other = QConfig.get_default_config(name.removesuffix("_QCONFIG"))
    assert (config.global_config, config.extra_options) == (other.global_config, other.extra_options)
    if name.startswith(("A8W8", "A16W8", "XINT8")):
        assert QuantizedModel(quantized(config)).input("stem", 1).kind == "int8"
    else:
        with pytest.raises(UnsupportedError):
            ModelQuantizer(config)


def test_how_they_finetune() -> None:
    """The constants as the classes' defaults, the others as AMD Quark's default parameters."""
    assert quark.onnx.A8W8_ADAROUND_QCONFIG.fast_finetune == AdaRoundConfig()
    assert quark.onnx.A8W8_ADAQUANT_QCONFIG.fast_finetune == AdaQuantConfig()
    for end, params, kind in (
        ("ADAROUND", custom_config.DEFAULT_ADAROUND_PARAMS, AdaRoundConfig),
        ("ADAQUANT", custom_config.DEFAULT_ADAQUANT_PARAMS, AdaQuantConfig),
    ):
        config = QConfig.get_default_config(f"U8S8_AAWS_{end}")
        update_bias = {"UpdateBias": True} if end == "ADAQUANT" else {}
        by_params = QConfig(config.global_config, algo_config=[kind()], FastFinetune={**params, **update_bias})
        assert config.fast_finetune == by_params.fast_finetune
        assert config.fast_finetune.early_stop


def test_the_documented_layers() -> None:
    assert quark.onnx.XINT8_QCONFIG.global_config == QLayerConfig(input_tensors=XInt8Spec(), weight=XInt8Spec())
    assert quark.onnx.A8W8_QCONFIG.global_config == QLayerConfig(input_tensors=Int8Spec(), weight=Int8Spec())
    assert quark.onnx.A8W8_QCONFIG.extra_options == {"ForceQuantizeNoInputCheck": True, "MaxFloatShare": 0.0}, (
        "what means something here"
    )
    assert get_default_config("U8S8_AAWS").global_config.inputs == UInt8Spec()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("XINT9", "got 'XINT9', expected the name of a ready configuration; did you mean 'XINT8'"),
        ("a8w8_adaround", "did you mean 'A8W8_ADAROUND'"),
        ("?", "known: .* and 53 more"),
    ],
)
def test_an_unknown_name_is_said_with_the_nearest(name: str, message: str) -> None:
    for get in (get_default_config, QConfig.get_default_config):
        with pytest.raises(ConfigError, match=message):
            get(name)
    with pytest.raises(AttributeError, match="XINT9_CONFIG"):
        _ = custom_config.XINT9_CONFIG


def test_the_older_classes() -> None:
    with pytest.raises(ConfigTypeError, match=r"Config.global_quant_config: got 1, expected what get_default"):
        Config(1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"QuantizationConfig.calibrate_method: got 1, expected one of Calibration"):
        QuantizationConfig(calibrate_method=1)
