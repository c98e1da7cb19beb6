"""The ready configurations at the path, and under the names, that scripts for AMD Quark import them from.

`<NAME>_CONFIG` is `get_default_config("<NAME>")`.
"""

from __future__ import annotations

from quark.onnx.config.presets import (
    A8W8_ADAQUANT_QCONFIG,
    A8W8_ADAROUND_QCONFIG,
    A8W8_QCONFIG,
    A16W8_ADAQUANT_QCONFIG,
    A16W8_ADAROUND_QCONFIG,
    A16W8_QCONFIG,
    BF16_QCONFIG,
    BFP16_QCONFIG,
    DEFAULT_ADAQUANT_PARAMS,
    DEFAULT_ADAROUND_PARAMS,
    PRESETS,
    VINT8_QCONFIG,
    XINT8_ADAQUANT_QCONFIG,
    XINT8_ADAROUND_QCONFIG,
    XINT8_QCONFIG,
    get_default_config,
)
from quark.onnx.config.qconfig import QConfig

__all__ = [
    "A8W8_ADAQUANT_QCONFIG",
    "A8W8_ADAROUND_QCONFIG",
    "A8W8_QCONFIG",
    "A16W8_ADAQUANT_QCONFIG",
    "A16W8_ADAROUND_QCONFIG",
    "A16W8_QCONFIG",
    "BF16_QCONFIG",
    "BFP16_QCONFIG",
    "DEFAULT_ADAQUANT_PARAMS",
    "DEFAULT_ADAROUND_PARAMS",
    "VINT8_QCONFIG",
    "XINT8_ADAQUANT_QCONFIG",
    "XINT8_ADAROUND_QCONFIG",
    "XINT8_QCONFIG",
    "get_default_config",
]


def __getattr__(name: str) -> QConfig:
    if name.endswith("_CONFIG") and (preset := name.removesuffix("_CONFIG")) in PRESETS:
        return PRESETS[preset]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(f"{name}_CONFIG" for name in PRESETS)})
