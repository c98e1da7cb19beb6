"""The site of docs/: it is built without a warning, has every page and every public name, and needs no network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import quark.onnx

for needed in ("sphinx", "furo", "myst_parser"):
    pytest.importorskip(needed, reason="the extra docs is not installed")

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390  # CSS pixels
# The page around the others, which it shows one after the other in a frame as wide as a phone. What is in a part that
# scrolls by itself, as wide tables do, may be wider.
LOOK = """<pre id="seen"></pre><script>
const pages = %s, phone = %d, seen = {};
function look(index) {
  if (index == pages.length) { document.getElementById('seen').textContent = JSON.stringify(seen); return; }
  const frame = document.createElement('iframe');
  frame.style = `border: 0; width: ${phone}px; height: 800px`;
  frame.src = pages[index];
  frame.onload = () => {
    const page = frame.contentDocument, all = [...page.querySelectorAll('article *')];
    const scrolls = (one) => one.tagName != 'ARTICLE'
      && (frame.contentWindow.getComputedStyle(one).overflowX != 'visible' || scrolls(one.parentElement));
    const beyond = all.filter(one => one.getBoundingClientRect().right > phone + 0.5 && !scrolls(one));
    seen[pages[index]] = {
      width: page.documentElement.scrollWidth, elements: all.length,
      beyond: beyond.map(one => one.outerHTML.slice(0, 80)),
    };
    frame.remove();
    look(index + 1);
  };
  document.body.appendChild(frame);
}
look(0);
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs" / "site", ROOT, folder]
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


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_nothing_reaches_beyond_a_phone(site: Path) -> None:
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    looking = site / "looking.html"
    looking.write_text(LOOK % (json.dumps(pages), PHONE), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files")
    command = [BROWSER, *options, "--virtual-time-budget=600000", "--dump-dom", looking.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    looking.unlink()
    text = re.search(r'<pre id="seen">(.*?)</pre>', shown, re.DOTALL)
    seen = json.loads(html.unescape(text[1]))
    assert set(seen) == set(pages)
    assert all(one["elements"] for one in seen.values())
    assert {page: one["beyond"] for page, one in seen.items() if one["beyond"] or one["width"] > PHONE} == {}


def test_formulas_are_drawn_without_scripts(site: Path) -> None:
    assert "<math" in (site / "docs" / "numerics.html").read_text(encoding="utf-8")
