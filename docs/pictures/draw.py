"""Measures what the pictures of docs/concepts/ show, and draws them: python docs/pictures/draw.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import layers
import least_squares
import loop
import ranges
import rounding
import walk


def main(folder: Path) -> None:
    """Write every picture into the folder."""
    for module in (layers, least_squares, loop, ranges, rounding, walk):
        (folder / f"{module.__name__}.svg").write_text(module.picture(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
