"""A configuration as a notebook shows it: what was set, nested as it was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from html import escape

__all__ = ["described_html"]


def described_html(config: object) -> str:
    """The class and the fields that differ from their defaults; configurations among them can be opened.

    Args:
        config: a dataclass instance whose `changed()` gives these fields, as `FrozenConfig` has it.
    """
    return f'<div class="quark-onnx-config">{_shown(config, is_open=True)}</div>'


def _shown(value: object, *, is_open: bool = False) -> str:
    if dataclasses.is_dataclass(value) and hasattr(value, "changed"):
        rows = "".join(
            f"<li><code>{escape(name)}</code>: {_shown(item)}</li>" for name, item in value.changed().items()
        )
        name = f"<code><b>{escape(type(value).__name__)}</b></code>"
        state = " open" if is_open else ""
        return f"<details{state}><summary>{name}</summary><ul>{rows}</ul></details>" if rows else name
    if isinstance(value, (list, tuple)) and any(dataclasses.is_dataclass(item) for item in value):
        return "".join(f"<div>{_shown(item, is_open=True)}</div>" for item in value)
    if isinstance(value, Mapping) and value:
        items = "".join(f"<li>{_shown(key)}: {_shown(item)}</li>" for key, item in value.items())
        return f"<ul>{items}</ul>"
    return f"<code>{escape(repr(value))}</code>"
