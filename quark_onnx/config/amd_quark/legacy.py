"""AMD Quark's configuration classes from before QConfig, as far as scripts for ready configurations need them."""

from __future__ import annotations

from typing import Any

from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import Int8Spec, QLayerConfig
from quark.onnx.config.validate import problem
from quark.onnx.errors import ConfigTypeError

from .open_config import opened

__all__ = ["Config", "QuantizationConfig"]


def Config(global_quant_config: QConfig) -> QConfig:  # noqa: N802
    """What `get_default_config` returned, which needs no wrapper here.

    Raises:
        ConfigTypeError: it is something else.
    """
    if not isinstance(global_quant_config, QConfig):
        expected = "what get_default_config returned"
        raise ConfigTypeError(problem("Config.global_quant_config", global_quant_config, expected))
    return global_quant_config


def QuantizationConfig(**options: Any) -> QConfig:  # noqa: N802
    """The configuration of scripts from before QConfig, as a QConfig that may be changed.

    Args:
        **options: the names of `open_config.OLD_NAMES`, and `extra_options`, `use_external_data_format` and the like,
            which QConfig has too. What is absent is as `QConfig(QLayerConfig(Int8Spec(), weight=Int8Spec()))` has it.

    Raises:
        ConfigError: a wrong value; ConfigTypeError: an unknown name.
        UnsupportedError: a value asks for what is not there.
    """
    config = opened(QConfig(QLayerConfig(input_tensors=Int8Spec(), weight=Int8Spec())))
    # Types keep what other names say of their tensors; names of single options add to extra_options; the algorithm is
    # named by one of these.
    first = ("activation_type", "weight_type", "extra_options")
    for name in sorted(
        options, key=lambda name: (name not in first, name == "extra_options", name == "include_fast_ft")
    ):
        setattr(config, name, options[name])
    return config
