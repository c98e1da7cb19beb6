"""Every test that docs/reliability.md names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"


def named() -> list[tuple[str, str]]:
    """File and function; the function is empty where the whole file is meant. `::f` is of the file named last."""
    found, file = [], ""
    for path, function in re.findall(r"`(tests/[\w/]+\.(?:py|c))?(?:::(\w+))?`", PAGE.read_text(encoding="utf-8")):
        file = path or file
        if path or function:
            found.append((file, function))
    return found


@pytest.mark.parametrize(("file", "function"), named())
def test_it_is_there(file: str, function: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    if file.endswith(".py"):
        names = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
        assert function in names or (not function and any(name.startswith("test_") for name in names))


def test_the_page_names_tests() -> None:
    assert len(named()) > 60
