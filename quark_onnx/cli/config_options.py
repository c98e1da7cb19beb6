"""From the fields of the configuration classes to options: name, kind, default and help come from the class."""

from __future__ import annotations

import collections.abc
import enum
import inspect
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

from quark.onnx.cli.plain_values import read_value
from quark.onnx.config.validate import Check
from quark.onnx.errors import ConfigError

__all__ = ["FUNCTION", "ConfigOption", "Edit", "ParamType", "described_fields", "edits_of", "field_options", "kebab"]

Edit = tuple[tuple[str, ...], Any]  # a place in a written configuration, and what is to stand there
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_FRACTION = re.compile(r"(\d+(?:\.\d*)?)/([1-9]\d*(?:\.\d*)?)")
_EDITS = "quark.onnx.cli.edits"
if TYPE_CHECKING:
    ParamType: TypeAlias = click.ParamType[Any]
else:
    ParamType = click.ParamType  # which older versions of click do not index
_PLAIN = {int: "INT", float: "NUMBER", str: "TEXT"}


class ConfigValue(ParamType):
    """Text that stands for the value of a field; it becomes what a configuration file has there.

    Args:
        check: of the field.
        kinds: what the field may be, None left out.
    """

    def __init__(self, check: Check, kinds: Sequence[Any]) -> None:
        self._check, self._kinds = check, kinds
        self._enum = next((k for k in kinds if isinstance(k, type) and issubclass(k, enum.Enum)), None)
        self.choices: tuple[str, ...] = tuple(self._enum.__members__) if self._enum is not None else ()
        self.choices += tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))
        self.name = (
            "[" + "|".join(self.choices) + "]" if self.choices else "|".join(dict.fromkeys(map(_shown_kind, kinds)))
        )

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        """What stands for the value in help."""
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value as it is written.

        Raises:
            click.BadParameter: the field does not take it.
        """
        if not isinstance(value, str) or (self._takes_functions and FUNCTION.fullmatch(value)):
            return value  # a function is looked up when all options are known
        written = self._written(value)
        try:
            self._check("", self._check.decode(written))
        except ConfigError as error:
            self.fail(f"got {value!r}, expected {str(error).partition(', expected ')[2]}", param, ctx)
        return written

    @property
    def _takes_functions(self) -> bool:
        return any(get_origin(kind) is collections.abc.Callable for kind in self._kinds)

    def _written(self, text: str) -> Any:
        if self._enum is not None:
            return f"{self._enum.__name__}.{self._choice(text)}"
        if self.choices or str in self._kinds:
            return self._choice(text)
        if fraction := _FRACTION.fullmatch(text):
            return float(fraction[1]) / float(fraction[2])
        value = read_value(text)
        return [read_value(part) for part in text.split(",")] if isinstance(value, str) and "," in text else value

    def _choice(self, text: str) -> str:
        """The choice that is meant, whatever its case."""
        return next((word for word in self.choices if word.casefold() == text.casefold()), text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        """The choices that begin as the word does."""
        return [CompletionItem(word) for word in self.choices if word.casefold().startswith(incomplete.casefold())]


class ConfigOption(click.Option):
    """An option that stands for a field of a configuration.

    Attributes:
        path: of the field in the written configuration.
        section: of the help.
        full_help: the field's whole description; help on the terminal has its first sentence.
    """

    def __init__(
        self, names: Sequence[str], path: tuple[str, ...], section: str, full_help: str, default: str, **keywords: Any
    ) -> None:
        full_help = full_help[:1].upper() + full_help[1:]
        self.path, self.section, self.full_help = path, section, f"{full_help} {default}".strip()
        short = f"{_first_sentence(full_help)} {default}".strip()
        super().__init__(names, help=short, default=None, expose_value=False, callback=_keep, **keywords)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value != () and isinstance(param, ConfigOption):
        ctx.meta.setdefault(_EDITS, []).append((param.path, list(value) if isinstance(value, tuple) else value))


def edits_of(ctx: click.Context, *below: str) -> list[Edit]:
    """What the options of a call say of the configuration, below a path of it."""
    found: list[Edit] = ctx.meta.get(_EDITS, [])
    return [(path[len(below) :], value) for path, value in found if path[: len(below)] == below]


def field_options(
    cls: type,
    path: tuple[str, ...],
    section: str,
    *,
    prefix: str = "",
    leave_out: Iterable[str] = (),
    variants: Mapping[str, type] = types.MappingProxyType({}),
) -> Iterator[ConfigOption]:
    """An option for each field of a configuration class.

    Args:
        path: of the class's fields in a written configuration.
        section: of the help.
        prefix: of the options' names; fields that begin with it get it once.
        leave_out: fields without an option.
        variants: classes with the same fields, by name; where their defaults differ, help says so.
    """
    described, defaults = described_fields(cls), _defaults(cls)
    for name, hint in get_type_hints(cls, include_extras=True).items():
        if get_origin(hint) is not Annotated or name in leave_out:
            continue
        kinds = _kinds(get_args(hint)[0])
        differing = {
            word: value for word, other in variants.items() if (value := _defaults(other)[name]) != defaults[name]
        }
        option, place = kebab(name if name.startswith(prefix) else prefix + name), (*path, name)
        default = _default_text(defaults.get(name), differing)
        if kinds == (bool,):
            yield ConfigOption([f"--{option}/--no-{option}"], place, section, described[name], default)
        elif any(map(_is_of_names, kinds)):
            given: Any = {"type": _Name(), "multiple": True}
            yield ConfigOption([f"--{option}"], place, section, f"{described[name]} May be repeated.", default, **given)
        else:
            value = ConfigValue(hint.__metadata__[0], kinds)
            yield ConfigOption([f"--{option}"], place, section, described[name], default, type=value)


class _Name(ParamType):
    """A name of several; a text that begins with "[[" is a pair of lists."""

    name = "NAME"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return read_value(value) if isinstance(value, str) and value.startswith("[[") else value


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The members of a union, None left out."""
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(one for one in get_args(hint) if one is not types.NoneType)
    return (hint,)


def _shown_kind(kind: Any) -> str:
    if get_origin(kind) is collections.abc.Callable:
        return "MODULE:FUNCTION"
    if get_origin(kind) in (tuple, list):
        return f"{_PLAIN.get(get_args(kind)[0], 'VALUE')},..."
    return _PLAIN.get(kind, "PATH" if kind == os.PathLike[str] else "VALUE")


def _is_of_names(kind: Any) -> bool:
    return get_origin(kind) in (tuple, list) and str in _kinds(get_args(kind)[0])


def _defaults(cls: type) -> dict[str, Any]:
    if not is_dataclass(cls):
        return {}
    return {field.name: None if field.default is MISSING else field.default for field in fields(cls)}


def _default_text(default: Any, differing: Mapping[str, Any]) -> str:
    if default in (None, False, ()) and not differing:
        return ""
    others = "".join(f"; {word}: {value}" for word, value in differing.items())
    return f"[default: {_shown(default)}{others}]"


def _shown(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return value.name
    return ",".join(map(_shown, value)) if isinstance(value, tuple) else str(value)


def kebab(name: str) -> str:
    """num_iterations and NumIterations as num-iterations."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name)
    return words.replace("_", "-").lower()


def described_fields(cls: type) -> dict[str, str]:
    """What the docstring of a configuration class, and of those that it inherits from, says of each field."""
    names = [n for n, hint in get_type_hints(cls, include_extras=True).items() if get_origin(hint) is Annotated]
    found: dict[str, str] = {}
    for base in (cls, *getattr(cls, "__mro__", ())):
        for name, text in _entries(inspect.getdoc(base) or "", names):
            found.setdefault(name, text)
    return {name: found.get(name, "") for name in names}


def _entries(doc: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The entries "name, other: text" of a docstring; a text goes on in the lines that are indented further."""
    head = re.compile(r"(\s*)((?:\w+)(?:, \w+)*): (.*)")
    lines = doc.splitlines()
    for index, line in enumerate(lines):
        match = head.fullmatch(line)
        if match is None or not set(entry := match[2].split(", ")) <= set(names):
            continue
        text = [match[3]]
        for further in lines[index + 1 :]:
            if not further.strip() or len(further) - len(further.lstrip()) <= len(match[1]):
                break
            text.append(further.strip())
        for name in entry:
            yield name, " ".join(text).replace("`", "")


def _first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or, of a long one, the first semicolon."""
    sentence = re.split(r"(?<=[^.]\.)\s", text, maxsplit=1)[0]
    return sentence if len(sentence) < 160 else sentence.split("; ")[0]
