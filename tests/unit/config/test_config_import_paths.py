"""Every documented import path offers its names, and each name is one and the same object everywhere."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import quark.onnx

ALGORITHMS = (
    "AdaQuantConfig", "AdaRoundConfig", "AlgoConfig", "AutoMixprecisionConfig", "BiasCorrectionConfig", "CLEConfig",
    "GPTQConfig", "QuarotConfig", "SmoothQuantConfig",
)  # fmt: skip
INTEGERS = tuple(f"{sign}Int{bits}" for bits in (2, 4, 8, 16, 32) for sign in ("", "U"))
FLOATS = ("Float16", "BFloat16", "BFP16")
MX = (
    "MX4", "MX6", "MX9", "MXFP4E2M1", "MXFP6E2M3", "MXFP6E3M2", "MXFP8E4M3", "MXFP8E5M2", "MXInt8",
)  # fmt: skip
ENUMS = ("CalibMethod", "ScaleType", "QuantGranularity")
SPECS = ("QTensorConfig", "QLayerConfig", "XInt8Spec", *(f"{name}Spec" for name in (*INTEGERS, *FLOATS, *MX)))
READY = (
    *(f"{kind}{end}_QCONFIG" for kind in ("XINT8", "A8W8", "A16W8") for end in ("", "_ADAROUND", "_ADAQUANT")),
    *("VINT8_QCONFIG", "BF16_QCONFIG", "BFP16_QCONFIG"),
)
READERS = ("CachedDataReader", "PathDataReader", "RandomDataReader")
CONFIGS = ("QConfig", "Config", "QuantizationConfig")
DEFAULTS = ("get_default_config", "get_default_config_mapping", "DefaultConfigMapping")

PATHS = {
    "quark.onnx": (
        "ModelQuantizer", "CalibrationDataReader", "QuantFormat", "QuantType", *READERS, *CONFIGS, *ENUMS, *SPECS,
        "DataType", *INTEGERS, *FLOATS, *ALGORITHMS, *READY,
    ),
    "quark.onnx.quantization": (*ALGORITHMS, "QConfig"),
    "quark.onnx.quantization.api": ("ModelQuantizer",),
    "quark.onnx.quantization.config": (*CONFIGS, *DEFAULTS),
    "quark.onnx.quantization.config.config": CONFIGS,
    "quark.onnx.quantization.config.spec": (*SPECS, *ENUMS),
    "quark.onnx.quantization.config.algorithm": ALGORITHMS,
    "quark.onnx.quantization.config.data_type": ("DataType", *INTEGERS, *FLOATS, *MX),
    "quark.onnx.quantization.config.custom_config": (
        *READY, "get_default_config", "DEFAULT_ADAROUND_PARAMS", "DEFAULT_ADAQUANT_PARAMS", "XINT8_CONFIG",
        "U8S8_AAWS_ADAROUND_CONFIG", "INT8_CNN_DEFAULT_CONFIG",
    ),
    "quark.onnx.calibration": (*READERS, "get_data_reader"),
}  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_documented_path_offers_its_names(path: str) -> None:
    module = import_module(path)
    for name in PATHS[path]:
        home = next(import_module(other) for other, names in PATHS.items() if name in names)
        if name.endswith(("_QCONFIG", "_PARAMS", "_CONFIG")):  # each import has a copy of its own
            assert getattr(module, name) == getattr(home, name)
        else:
            assert getattr(module, name) is getattr(home, name)


def test_what_is_exported_is_there() -> None:
    modules = [import_module(path) for path in PATHS]
    for module in modules:
        for name in module.__all__:
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_the_package_exports_all_that_is_documented_and_is_its_own() -> None:
    assert set(PATHS["quark.onnx"]) <= set(quark.onnx.__all__)
    assert {"get_data_reader", "finetune", "Report", "UnsupportedError"} <= set(quark.onnx.__all__)


def test_everything_can_be_imported_at_once() -> None:
    code = "from quark.onnx import *; QConfig.get_default_config('A8W8'); XINT8_QCONFIG"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
