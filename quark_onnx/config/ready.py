"""Ready configurations by name. Who makes them, of QConfigs, lists them here, and QConfig hands them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quark.onnx.errors import ConfigError

from .validate import nearest, problem

__all__ = ["list_ready", "ready_configuration"]

_TABLE: dict[str, Callable[[], Any]] = {}


def list_ready(configurations: Mapping[str, Callable[[], Any]]) -> None:
    """Adds configurations to the table.

    Args:
        configurations: what makes a fresh copy, by name.
    """
    _TABLE.update(configurations)


def ready_configuration(name: str) -> Any:
    """A fresh copy of the ready configuration of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _TABLE:
        expected = f"the name of a ready configuration; {nearest(name, _TABLE)}"
        raise ConfigError(problem("get_default_config()", name, expected))
    return _TABLE[name]()
