"""Every exception that this package raises on purpose; all are a `QuarkError`."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConfigTypeError",
    "DataError",
    "FinetuneError",
    "ModelError",
    "ModelTypeError",
    "OutOfMemoryError",
    "QuarkError",
    "UnsupportedError",
]


class QuarkError(Exception):
    """Base of all errors of this package."""


class ConfigError(QuarkError, ValueError):
    """A configuration holds a wrong value."""


class ConfigTypeError(ConfigError, TypeError):
    """A configuration holds a value of a wrong type, or got a keyword that it does not have."""


class UnsupportedError(QuarkError, NotImplementedError):
    """A configuration is well formed and asks for something that this version, or this machine, cannot do."""


class ModelError(QuarkError, ValueError):
    """A model cannot be read, or cannot be quantized or finetuned."""


class ModelTypeError(ModelError, TypeError):
    """What is given for a model is neither a path nor an onnx.ModelProto."""


class DataError(QuarkError, ValueError):
    """A calibration data reader yields nothing, or samples that do not fit the model."""


class FinetuneError(QuarkError, RuntimeError):
    """Finetuning failed while it ran."""


class OutOfMemoryError(QuarkError, MemoryError):
    """There is not enough memory for what cannot be left out."""
