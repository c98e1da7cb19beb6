"""Dataclasses as plain data that JSON takes, and back."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from quark.onnx.errors import DataError

__all__ = ["from_plain", "to_plain"]

_Class = TypeVar("_Class")


def to_plain(value: Any) -> Any:
    """Dicts, lists, strings and numbers; a float that is not finite is None, as JSON knows none."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(cls: type[_Class], plain: Any, where: str) -> _Class:
    """The dataclass that `to_plain` wrote. Fields that are missing get their defaults; a float that is None is NaN.

    Args:
        where: what is read, for errors.

    Raises:
        DataError: it is none of this class.
    """
    return _dataclass(cls, plain, where)


def _dataclass(cls: type[_Class], plain: Any, where: str) -> _Class:
    if not isinstance(plain, Mapping):
        raise DataError(f"{where}: got {_short(plain)}, expected the fields of a {cls.__name__}")
    hints = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    unknown = [key for key in plain if key not in hints]
    if unknown:
        raise DataError(
            f"{where}: a {cls.__name__} has no field {unknown[0]!r}: a newer version wrote it, or it is none"
        )
    values = {key: _value(hints[key], item, f"{where}.{key}") for key, item in plain.items()}
    try:
        return cls(**values)
    except TypeError as error:
        raise DataError(f"{where}: not a whole {cls.__name__}: {error}") from error


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _value(hint: Any, plain: Any, where: str) -> Any:
    hint = getattr(hint, "__supertype__", hint)  # of a NewType
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(kind for kind in arguments if kind is not type(None))
        return None if plain is None else _value(inner, plain, where)
    if hint is float and plain is None:
        return math.nan
    if is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, plain, where)
    if origin is tuple:
        return _tuple(arguments, plain, where)
    if hint is Any:
        return plain
    if origin is Literal:
        if plain not in arguments:
            raise DataError(f"{where}: got {_short(plain)}, expected one of {', '.join(map(repr, arguments))}")
        return plain
    kind = Mapping if origin is not None and issubclass(origin, Mapping) else hint
    if kind is Mapping and isinstance(plain, Mapping):
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in plain.items()}
    if hint is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if not isinstance(plain, kind) or (kind is not bool and isinstance(plain, bool)):
        raise DataError(f"{where}: got {_short(plain)}, expected a {getattr(kind, '__name__', kind)}")
    return plain


def _tuple(arguments: tuple[Any, ...], plain: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(plain, (list, tuple)):
        raise DataError(f"{where}: got {_short(plain)}, expected a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_value(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(plain))
    if len(plain) != len(arguments):
        raise DataError(f"{where}: got {len(plain)} values, expected {len(arguments)}")
    return tuple(
        _value(hint, item, f"{where}[{index}]") for index, (hint, item) in enumerate(zip(arguments, plain, strict=True))
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
