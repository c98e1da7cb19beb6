"""What several files of the project say about it is the same."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import quark.onnx

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_version_is_that_of_the_project() -> None:
    assert quark.onnx.__version__ == VERSION


def test_the_citation_has_the_version() -> None:
    assert re.findall(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [VERSION]
