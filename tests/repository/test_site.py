"""The site of docs/: it is built without a warning, has every page and every public name, and needs no network."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import quark.onnx

for needed in ("sphinx", "furo", "myst_parser"):
    pytest.importorskip(needed, reason="the extra docs is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs", ROOT, folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    pages = [page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if not (site / page).with_suffix(".html").exists()] == []


def test_the_first_page_is_the_readme(site: Path) -> None:
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


def test_every_public_name_has_an_entry(site: Path) -> None:
    inventory = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    documented = {line.partition(" py:")[0] for line in inventory.splitlines()}
    assert {f"quark.onnx.{name}" for name in quark.onnx.__all__} - documented == set()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    foreign = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^>]*>")
    found = {page.name: foreign.findall(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert {name: tags for name, tags in found.items() if tags} == {}


def test_formulas_are_drawn_without_scripts(site: Path) -> None:
    assert "<math" in (site / "docs" / "numerics.html").read_text(encoding="utf-8")
