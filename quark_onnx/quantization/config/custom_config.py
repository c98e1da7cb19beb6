"""The ready configurations at the path, and under the names, that scripts for AMD Quark import them from.

`<NAME>_CONFIG` is `get_default_config("<NAME>")`. Each import gives a copy of its own, which may be changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quark.onnx.config.amd_quark.presets import HANDED_OUT, PRESETS, get_default_config, handed_out

if TYPE_CHECKING:
    from quark.onnx.config.qconfig import QConfig

    A8W8_ADAQUANT_QCONFIG: QConfig
    A8W8_ADAROUND_QCONFIG: QConfig
    A8W8_QCONFIG: QConfig
    A16W8_ADAQUANT_QCONFIG: QConfig
    A16W8_ADAROUND_QCONFIG: QConfig
    A16W8_QCONFIG: QConfig
    BF16_QCONFIG: QConfig
    BFP16_QCONFIG: QConfig
    DEFAULT_ADAQUANT_PARAMS: dict[str, Any]
    DEFAULT_ADAROUND_PARAMS: dict[str, Any]
    VINT8_QCONFIG: QConfig
    XINT8_ADAQUANT_QCONFIG: QConfig
    XINT8_ADAROUND_QCONFIG: QConfig
    XINT8_QCONFIG: QConfig

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


def __getattr__(name: str) -> Any:
    if name in HANDED_OUT:
        return handed_out(name)
    if name.endswith("_CONFIG") and (preset := name.removesuffix("_CONFIG")) in PRESETS:
        return get_default_config(preset)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *HANDED_OUT, *(f"{name}_CONFIG" for name in PRESETS)})
