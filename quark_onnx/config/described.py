"""A configuration as text that is the same in every process, callables included, to tell whether two are one."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from types import CodeType
from typing import Any

from .data_type import DataType
from .frozen import FrozenConfig

__all__ = ["WAYS", "described"]

# What the result does not depend on: how the work is done, and what is said of it.
WAYS = frozenset({"NumThreads", "MaxMemory", "mem_opt_level", "cache_dir", "log_period"})


def described(value: object) -> str:
    """A configuration, without the options that the result does not depend on. A callable is its name and its code."""
    if isinstance(value, FrozenConfig):
        return f"{type(value).__name__}({_items(value.changed())})"
    if isinstance(value, Mapping):
        return f"{{{_items(value)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(described, value))}]"
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, DataType):
        return value.name
    if callable(value):
        name = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
        code = getattr(value, "__code__", None)
        return f"{name} {_code(code)}" if isinstance(code, CodeType) else name
    return repr(value)


def _items(items: Mapping[Any, object]) -> str:
    texts = (f"{described(key)}: {described(value)}" for key, value in items.items() if key not in WAYS)
    return ", ".join(sorted(texts))


def _code(code: CodeType) -> str:
    """The digest of a function's code, and of those in it."""
    text = "\0".join((*code.co_names, *map(_constant, code.co_consts)))
    return hashlib.sha256(code.co_code + text.encode()).hexdigest()


def _constant(value: object) -> str:
    if isinstance(value, CodeType):
        return _code(value)
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
