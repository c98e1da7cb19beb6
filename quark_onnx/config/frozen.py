"""The base of all configuration classes: checked when made, never changed, written and read as plain dicts.

A configuration class is a frozen dataclass whose fields are annotated with their checks (see validate.py):

    @strict_keywords
    @dataclass(frozen=True, repr=False)
    class Walk(FrozenConfig):
        steps: Annotated[int, integer("an int >= 1", lambda n: n >= 1)] = 10
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from quark.onnx.errors import ConfigError, ConfigTypeError

from .data_type import DataType
from .described_html import described_html
from .validate import Check, checks, nearest, problem

if TYPE_CHECKING:
    from typing import Self

Key = TypeVar("Key")
Value = TypeVar("Value")
Class = TypeVar("Class", bound=type)


class FrozenMapping(Mapping[Key, Value], Generic[Key, Value]):
    """A dict that cannot change, and so can be hashed. Equal to a dict with the same items."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[Key, Value] | Iterable[tuple[Key, Value]] = ()) -> None:
        self._items = dict(items)

    def __getitem__(self, key: Key) -> Value:
        return self._items[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def unexpected_keyword(cls: type, keyword: str, known: Iterable[str]) -> ConfigTypeError:
    """The error for a keyword that the constructor of a class does not have."""
    hint = nearest(keyword, known)
    return ConfigTypeError(f"{cls.__name__}() got an unexpected keyword {keyword!r}; {hint}")


def strict_keywords(cls: Class) -> Class:
    """Lets the error about an unknown keyword of the constructor name the nearest right one."""
    init: Callable[..., None] = vars(cls)["__init__"]
    keywords = [field.name for field in fields(cls) if field.init]

    @functools.wraps(init)
    def checked_init(self: object, *args: object, **kwargs: object) -> None:
        for keyword in kwargs:
            if keyword not in keywords:
                raise unexpected_keyword(type(self), keyword, keywords)
        init(self, *args, **kwargs)

    cls.__init__ = checked_init  # type: ignore[misc]
    return told_how_to_change(cls)


def told_how_to_change(cls: Class) -> Class:
    """Lets the error about an assignment to a field say what to write."""

    def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
        kind, known = type(self).__name__, [field.name for field in fields(cls)]
        if name not in known:
            raise FrozenInstanceError(f"{kind} has no field {name!r}; {nearest(name, known)}")
        raise FrozenInstanceError(
            f"{kind} is not changed after it is made: write dataclasses.replace(config, {name}={value!r}), which gives "
            "a changed copy"
        )

    cls.__setattr__ = __setattr__  # type: ignore[assignment, method-assign]
    return cls


@dataclass(frozen=True, repr=False)
class FrozenConfig:
    """A configuration. Comparable and hashable; `dataclasses.replace(config, field=value)` varies it."""

    def __post_init__(self) -> None:
        for name, check in checks(type(self)).items():
            object.__setattr__(self, name, check(f"{type(self).__name__}.{name}", getattr(self, name)))

    def changed(self) -> dict[str, Any]:
        """The fields that differ from their defaults, in order."""
        values = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return {name: value for name, value, default in values if value != default}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.changed().items())
        return f"{type(self).__name__}({arguments})"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return described_html(self)

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults as plain values, fit for JSON; `from_dict` reads it.

        Raises:
            ConfigError: a field holds a callable.
        """
        kind = type(self).__name__
        return {name: _plain(f"{kind}.{name}", value) for name, value in self.changed().items()}

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Self:
        """The configuration that `to_dict` wrote.

        Raises:
            ConfigError: an unknown or missing key, or a value that the constructor rejects.
        """
        where = f"{cls.__name__}.from_dict()"
        if not isinstance(written, Mapping):
            raise ConfigTypeError(problem(where, written, "a dict"))
        known = checks(cls)
        for key in written:
            if key not in known:
                raise ConfigError(f"{where}: got the unknown key {key!r}; {nearest(str(key), known)}")
        for field in fields(cls):
            if field.default is MISSING and field.name not in written:
                raise ConfigError(problem(where, written, f"the key {field.name!r} too"))
        return cls(**{key: known[key].decode(value) for key, value in written.items()})


@dataclass(frozen=True, repr=False)
class NamedConfig(FrozenConfig):
    """One of several kinds of configuration, told apart by `name` when written.

    A class that sets a `name` of its own is concrete; one that does not is abstract.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        if "name" not in vars(type(self)):
            kinds = ", ".join(kind.__name__ for kind in self._kinds().values())
            raise ConfigTypeError(f"{type(self).__name__}() is abstract; make one of its kinds: {kinds}")
        super().__post_init__()

    @classmethod
    def _kinds(cls) -> dict[str, type[Self]]:
        own = {cls.name: cls} if "name" in vars(cls) else {}
        return own | {name: kind for sub in cls.__subclasses__() for name, kind in sub._kinds().items()}

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **super().to_dict()}

    @classmethod
    def from_dict(cls, written: Mapping[str, Any]) -> Self:
        if not isinstance(written, Mapping) or ("name" not in written and "name" in vars(cls)):
            return super().from_dict(written)
        kinds = cls._kinds()
        name = str(written.get("name"))
        if name not in kinds:
            expected = f"the key 'name' with one of the kinds; {nearest(name, kinds)}"
            raise ConfigError(problem(f"{cls.__name__}.from_dict()", written, expected))
        arguments = {key: value for key, value in written.items() if key != "name"}
        return super(NamedConfig, kinds[name]).from_dict(arguments)


def instance(kind: type[FrozenConfig]) -> Check:
    """The check of a field that holds another configuration; written as that one's dict."""

    def convert(value: object) -> FrozenConfig:
        if not isinstance(value, kind):
            raise TypeError
        return value

    def decode(written: object) -> object:
        return kind.from_dict(written) if isinstance(written, Mapping) else written

    return Check(f"a {kind.__name__}", convert, decode)


def _plain(where: str, value: object) -> Any:
    if isinstance(value, FrozenConfig):
        return value.to_dict()
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, DataType):
        return value.name
    if isinstance(value, tuple):
        return [_plain(where, item) for item in value]
    if isinstance(value, Mapping):
        items = [[_plain(where, key), _plain(where, item)] for key, item in value.items()]
        return dict(items) if all(isinstance(key, str) for key in value) else items  # JSON has str keys only
    if callable(value):
        raise ConfigError(problem(where, value, "a value that can be written: a callable cannot"))
    return value
