"""The site's entries of configuration classes: which values a field takes, and which is its default.

Both come from the classes' own checks, so that the page cannot say anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass

from sphinx.application import Sphinx

from quark.onnx.config.frozen import FrozenConfig
from quark.onnx.config.qconfig import ExtraOptions
from quark.onnx.config.validate import checks

_LONG = 60  # characters of a default, which is then all that there is: the op types to tune
_ENTRY = re.compile(r" {4}(\w+): ")


def add_values(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Add them to the docstring as it is written, which napoleon reads after this."""
    if isinstance(obj, type) and (issubclass(obj, FrozenConfig) or obj is ExtraOptions):
        lines[:] = _with_values(obj, lines)


def _with_values(cls: type, lines: list[str]) -> Iterator[str]:
    values = {name: check.expected for name, check in checks(cls).items()}
    for field in fields(cls) if is_dataclass(cls) else ():
        default = repr(field.default)
        if field.default is not MISSING and field.name in values and len(default) < _LONG:
            values[field.name] += f"; by default ``{default}``"
    pending = ""
    for line in [*lines, ""]:
        entry = _ENTRY.match(line)
        if pending and (entry or not line.startswith(" " * 8)):
            yield pending
            pending = ""
        yield line
        if entry and entry[1] in values:
            pending = f"        ({values[entry[1]]})"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", add_values, priority=400)  # napoleon has 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
