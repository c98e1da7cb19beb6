"""AMD Quark's configuration classes from before QConfig, as far as scripts for ready configurations need them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from quark.onnx.errors import ConfigTypeError, UnsupportedError

from .validate import problem

if TYPE_CHECKING:
    from .qconfig import QConfig

__all__ = ["Config", "QuantizationConfig"]


def Config(global_quant_config: QConfig) -> QConfig:  # noqa: N802
    """What `get_default_config` returned, which needs no wrapper here.

    Raises:
        ConfigTypeError: it is something else.
    """
    from .qconfig import QConfig  # whose module offers this function

    if not isinstance(global_quant_config, QConfig):
        expected = "what get_default_config returned"
        raise ConfigTypeError(problem("Config.global_quant_config", global_quant_config, expected))
    return global_quant_config


class QuantizationConfig:
    """Only its name: QConfig takes its place.

    Raises:
        UnsupportedError: always.
    """

    def __init__(self, *_: object, **__: object) -> NoReturn:
        raise UnsupportedError("QuantizationConfig is not supported: write QConfig(QLayerConfig(...), ...) instead")
