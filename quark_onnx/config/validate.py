"""What a configuration value may be, and the one form of the message when it is not.

    Count = Annotated[int, integer("an int >= 1", lambda n: n >= 1)]

is the type of a field that holds such an int; `checks` finds the check behind it, which converts the value
given or raises `AdaRoundConfig.num_iterations: got 0, expected an int >= 1`.
"""

from __future__ import annotations

import difflib
import enum
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, get_type_hints

import numpy as np

from quark.onnx.errors import ConfigError, ConfigTypeError


def problem(where: str, given: object, expected: str) -> str:
    """The one form of a message: where, what was given, what is right."""
    shown = repr(given)
    return f"{where}: got {shown if len(shown) <= 100 else shown[:97] + '...'}, expected {expected}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Says which of `known` was probably meant by `word`, or lists the first ones when none is close."""
    by_folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), by_folded)
    if close:
        return f"did you mean {' or '.join(repr(by_folded[name]) for name in close)}?"
    listed = [*by_folded.values()]
    return f"known: {', '.join(listed[:12])}{f' and {len(listed) - 12} more' if len(listed) > 12 else ''}"


@dataclass(frozen=True)
class Check:
    """What one field accepts.

    Attributes:
        expected: completes the sentence "expected ..." of the message.
        convert: returns the value as it is stored. It raises TypeError or ValueError for what the field does
            not accept; the text of that exception, if any, replaces `expected`.
        decode: turns what `to_dict` wrote into what `convert` accepts; it leaves alone what it cannot read.
    """

    expected: str
    convert: Callable[[Any], Any]
    decode: Callable[[Any], Any] = lambda written: written

    def __call__(self, where: str, value: object) -> Any:
        """Returns the value to store. Raises ConfigError or ConfigTypeError."""
        try:
            return self.convert(value)
        except ConfigError:  # of a part of the value, and so more exact
            raise
        except TypeError as error:
            message = problem(where, value, str(error) or self.expected)
            raise ConfigTypeError(f"{message} ({type(value).__name__} given)") from None
        except ValueError as error:
            raise ConfigError(problem(where, value, str(error) or self.expected)) from None


def checks(cls: type) -> Mapping[str, Check]:
    """The check of each annotated field of a class, in order."""
    return _checks(cls)


@cache
def _checks(cls: type) -> Mapping[str, Check]:
    hints = get_type_hints(cls, include_extras=True)
    return MappingProxyType(
        {name: hint.__metadata__[0] for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    )


def integer(expected: str, accepts: Callable[[int], bool]) -> Check:
    """An int, NumPy's included; a bool is not one."""

    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError
        if not accepts(int(value)):
            raise ValueError
        return int(value)

    return Check(expected, convert)


def real(expected: str, accepts: Callable[[float], bool]) -> Check:
    """A finite number, NumPy's included; a bool is not one."""

    def convert(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError
        number = float(value)
        if not (math.isfinite(number) and accepts(number)):
            raise ValueError
        return number

    return Check(expected, convert)


def string(expected: str, accepts: Callable[[str], bool]) -> Check:
    """A str."""

    def convert(value: object) -> str:
        if not isinstance(value, str):
            raise TypeError
        if not accepts(value):
            raise ValueError
        return value

    return Check(expected, convert)


def strings(expected: str, *, known: tuple[str, ...] | None = None) -> Check:
    """A list or tuple of one or more str, none empty, each in `known` if that is given; stored as a tuple."""

    def convert(value: object) -> tuple[str, ...]:
        if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
            raise TypeError
        if not value or not all(value):
            raise ValueError
        for item in value:
            if known is not None and item not in known:
                raise ValueError(f"{expected}; {item!r} is none of them, {nearest(item, known)}")
        return tuple(value)

    return Check(expected, convert)


def member(kind: type[enum.Enum]) -> Check:
    """A member of an enum; written as "Enum.Member"."""

    def convert(value: object) -> enum.Enum:
        if not isinstance(value, kind):
            raise TypeError
        return value

    written = {f"{kind.__name__}.{name}": value for name, value in kind.__members__.items()}
    return Check(
        f"a member of {kind.__name__} ({', '.join(kind.__members__)})",
        convert,
        lambda value: written.get(value, value) if isinstance(value, str) else value,
    )


def optional(check: Check) -> Check:
    """Return the check that lets None pass and leaves every other value to `check`."""
    return Check(
        f"{check.expected}, or None",
        lambda value: None if value is None else check.convert(value),
        lambda value: None if value is None else check.decode(value),
    )


def _boolean(value: object) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _path(value: object) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str):
        raise TypeError
    if not path:
        raise ValueError
    return path


def _function(value: object) -> object:
    if not callable(value):
        raise TypeError
    return value


boolean = Check("True or False", _boolean)
function = Check("a callable", _function)
Flag = Annotated[bool, boolean]
FlagOrNone = Annotated[bool | None, optional(boolean)]
PathOrNone = Annotated[str | os.PathLike[str] | None, optional(Check("a path that is not empty", _path))]
