"""A configuration as the report keeps it: what was set, also what no JSON can hold."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from quark.onnx.config.data_type import DataType
from quark.onnx.config.frozen import FrozenConfig

__all__ = ["written_configuration"]


def written_configuration(config: FrozenConfig) -> dict[str, Any]:
    """The fields that differ from their defaults, with the name of each configuration's class as "kind".

    Unlike `FrozenConfig.to_dict`, it takes callables, which are written as their names: it is read by people.
    """
    return {"kind": type(config).__name__, **{name: _written(value) for name, value in config.changed().items()}}


def _written(value: object) -> Any:
    if isinstance(value, FrozenConfig):
        return written_configuration(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, DataType):
        return value.name
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value]
    if isinstance(value, Mapping):
        items = [(_written(key), _written(item)) for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key, _ in items) else [list(item) for item in items]
    if callable(value):
        return getattr(value, "__qualname__", repr(value))
    return value
