"""YAML as people write it: files of configurations, and values on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from quark.onnx.errors import ConfigError

__all__ = ["read_file", "read_value", "written_text"]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """YAML's safe loader, for which 1e-5 is a number, as in YAML 1.2 and in JSON."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_value(text: str) -> Any:
    """The value that a text stands for: a number, true or false, a list, ...; itself where it is none of these."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def read_file(path: Path) -> Any:
    """What a file of YAML or JSON holds.

    Raises:
        OSError: it cannot be read.
        ConfigError: it is neither.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error


def written_text(value: Any) -> str:
    """YAML that `read_file` reads."""
    text: str = yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False, allow_unicode=True)
    return text
