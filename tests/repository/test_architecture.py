"""docs/architecture.svg shows the storeys of the import rules; what pages name as places is there."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
_PATH = re.compile(r"`((?:\.\./)*[\w.-]+(?:/[\w.*-]+)+/?)`")


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_up_to_date(script: ModuleType) -> None:
    assert script.PICTURE.read_text(encoding="utf-8") == script.picture(), "run python docs/architecture.py"


def test_every_folder_is_a_room_of_the_picture(script: ModuleType) -> None:
    drawn = {text.text for text in ET.fromstring(script.picture()).iter("{http://www.w3.org/2000/svg}text")}
    package = {path.parent.name for path in (ROOT / "quark_onnx").glob("*/__init__.py")} - {"tools"}  # AMD Quark's name
    assert package <= drawn
    assert {path.parent.name for path in (ROOT / "csrc").glob("*/*.[ch]")} <= drawn


def test_no_room_is_left_that_is_gone(script: ModuleType) -> None:
    rules = script.rules()
    rooms = {room for storey in rules["STOREYS"] for room in storey if not room.startswith("_")}
    assert script.ROOMS.keys() == rooms
    assert script.CORE.keys() == rules["C_LAYERS"].keys()
    for room in rooms:
        path = ROOT / "quark_onnx" / room.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), room


@pytest.mark.parametrize(
    ("page", "root"),
    [("docs/architecture.md", "."), ("docs/glossary.md", "."), ("csrc/README.md", "csrc"), ("CONTRIBUTING.md", ".")],
)
def test_the_paths_that_a_page_names_exist(page: str, root: str) -> None:
    """From the repository's root; those of the core's page also from csrc."""
    found = _PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    assert found
    missing = [
        name for name in found
        if not any((ROOT / base / name).exists() or [*(ROOT / base).glob(name)] for base in {root, "."})
    ]  # fmt: skip
    assert missing == []
