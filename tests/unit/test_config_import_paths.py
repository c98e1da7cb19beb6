"""Every documented import path offers its names, and each name is one and the same object everywhere."""

from __future__ import annotations

from importlib import import_module

import pytest

ALGORITHMS = ("AlgoConfig", "AdaRoundConfig", "AdaQuantConfig")
DATA_TYPES = ("DataType", "Int8", "UInt8")
ENUMS = ("CalibMethod", "ScaleType", "QuantGranularity")
SPECS = ("QTensorConfig", "QLayerConfig", "Int8Spec", "UInt8Spec")
PATHS = {"config": ("QConfig",), "spec": (*SPECS, *ENUMS), "algorithm": ALGORITHMS, "data_type": DATA_TYPES}


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
