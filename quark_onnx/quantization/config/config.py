"""QConfig at the path that scripts for AMD Quark import it from."""

from quark.onnx.config.amd_quark.legacy import Config, QuantizationConfig
from quark.onnx.config.qconfig import QConfig

__all__ = ["Config", "QConfig", "QuantizationConfig"]
