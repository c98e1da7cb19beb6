"""Every documented import path offers its names, and each name is one and the same object everywhere."""

from __future__ import annotations

from importlib import import_module

import pytest

ALGORITHMS = ("AlgoConfig", "AdaRoundConfig", "AdaQuantConfig")
DATA_TYPES = ("DataType", "Int4", "Int8", "Int16", "UInt4", "UInt8", "UInt16")
ENUMS = ("CalibMethod", "ScaleType", "QuantGranularity")
SPECS = ("QTensorConfig", "QLayerConfig", *(f"{kind}Spec" for kind in DATA_TYPES[1:]))
UNSUPPORTED = (
    "BFP16Spec", "BFloat16Spec", "Float16Spec", "Int2Spec", "Int32Spec", "MX4Spec", "MX6Spec", "MX9Spec",
    "MXFP4E2M1Spec", "MXFP6E2M3Spec", "MXFP6E3M2Spec", "MXFP8E4M3Spec", "MXFP8E5M2Spec", "MXInt8Spec", "UInt2Spec",
    "UInt32Spec",
)  # fmt: skip
PATHS = {
    "config": ("QConfig",),
    "spec": (*SPECS, *ENUMS),
    "algorithm": ALGORITHMS,
    "data_type": DATA_TYPES,
    "unsupported_formats": UNSUPPORTED,
}


@pytest.mark.parametrize("module", PATHS)
def test_documented_module_offers_the_objects_of_the_package(module: str) -> None:
    package = import_module("quark.onnx.quantization.config")
    home = import_module(f"quark.onnx.quantization.config.{module}")
    for name in PATHS[module]:
        assert getattr(home, name) is getattr(package, name)
        assert name in package.__all__


def test_package_exports_exist() -> None:
    package = import_module("quark.onnx.quantization.config")
    assert sorted(package.__all__) == sorted(name for names in PATHS.values() for name in names)


def test_the_package_offers_all_specs_and_data_types() -> None:
    top, package = import_module("quark.onnx"), import_module("quark.onnx.quantization.config")
    for name in (*SPECS, *DATA_TYPES[1:], *UNSUPPORTED):
        assert getattr(top, name) is getattr(package, name)
        assert name in top.__all__
