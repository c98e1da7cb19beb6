"""Quantize a detector to 8 bits: python examples/detection.py [MODEL.onnx IMAGES/]

Without arguments it makes a small YOLO-like network with random weights and a folder of images, to show the steps. The
network joins boxes (0 to 128) and scores (0 to 1) in one output, as YOLO does. One scale for both leaves no step for
the scores, so this joint stays in float, and the report says so.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from networks import detector
from PIL import Image, ImageDraw

from quark.onnx import quantize


def pictures(folder: Path, count: int = 48) -> None:
    """Rectangles and ellipses on a background, as files of different sizes."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        image = Image.new(
            "RGB", tuple(random.integers(100, 200, 2).tolist()), tuple(random.integers(0, 255, 3).tolist())
        )
        draw = ImageDraw.Draw(image)
        for shape in (draw.rectangle, draw.ellipse, draw.rectangle):
            left, top, width, height = random.integers(10, 60, 4).tolist()
            shape((left, top, left + width, top + height), fill=tuple(random.integers(0, 255, 3).tolist()))
        image.save(folder / f"{index:03d}.png")


def main(model: Path, images: Path) -> None:
    report = quantize(model, model.with_name("detector_int8.onnx"), images, preprocess="yolo")
    print(report)
    for output in report.end_to_end.after.outputs:
        for part in output.parts or (output,):
            print(f"{part.name}: SQNR {part.sqnr_db:.1f} dB, error {100 * part.error:.2f} % of the variance")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            onnx.save(detector(), Path(scratch, "detector.onnx"))
            pictures(Path(scratch, "images"))
            main(Path(scratch, "detector.onnx"), Path(scratch, "images"))
