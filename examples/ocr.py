"""Quantize the text recognizer of RapidOCR and read with it: python examples/ocr.py

Its model comes from a wheel: pip install --no-deps rapidocr-onnxruntime. Lines of text are drawn, so that nothing else
is needed; for your own use, calibrate with lines from your own pages.
"""

from __future__ import annotations

import string
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

from quark.onnx import AdaRoundConfig, Int8Spec, QConfig, QLayerConfig, QuantGranularity, UInt8Spec, quantize

HEIGHT, WIDTH = 48, 192


def recognizer() -> Path:
    package = find_spec("rapidocr_onnxruntime")
    if package is None or not package.submodule_search_locations:
        sys.exit("this example needs the models of RapidOCR: pip install --no-deps rapidocr-onnxruntime")
    return Path(package.submodule_search_locations[0], "models", "ch_PP-OCRv4_rec_infer.onnx")


def words(count: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    letters = np.array(list(string.ascii_letters + string.digits))
    return ["".join(random.choice(letters, random.integers(4, 9))) for _ in range(count)]


def drawn(texts: list[str]) -> np.ndarray:
    """Lines of text as the model sees them: (lines, 3, 48, 192), from -1 to 1."""
    font, pages = ImageFont.load_default(size=30), []
    for text in texts:
        page = Image.new("RGB", (WIDTH, HEIGHT), "white")
        ImageDraw.Draw(page).text((6, 4), text, fill="black", font=font)
        pages.append(np.asarray(page, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return np.stack(pages)


def read(model: Path, pages: np.ndarray) -> list[str]:
    """The texts that a model reads: its likeliest characters, of which repeated ones and blanks are left out."""
    written = {entry.key: entry.value for entry in onnx.load(model).metadata_props}["character"]
    characters = ["", *written.split("\n"), " "]
    session = onnxruntime.InferenceSession(str(model))
    (scores,) = session.run(None, {"x": pages})
    best = scores.argmax(axis=2)
    return ["".join(characters[c] for c, last in zip(line, [0, *line[:-1]], strict=True) if c != last) for line in best]


def main() -> None:
    model, output = recognizer(), Path("recognizer_int8.onnx")
    weight = Int8Spec(
        quant_granularity=QuantGranularity.Channel
    )  # its channels differ much: 9 dB with one scale for all
    config = QConfig(QLayerConfig(activation=UInt8Spec(), weight=weight), algo_config=[AdaRoundConfig()])
    print(quantize(model, output, drawn(words(48, seed=0)), config))
    texts = words(64, seed=1)
    pages = drawn(texts)
    by_float, by_integers = read(model, pages), read(output, pages)
    print(f"{'drawn':16s} {'read by the float model':26s} read by the 8-bit model")
    for row in list(zip(texts, by_float, by_integers, strict=True))[:5]:
        print("{:16s} {:26s} {}".format(*row))
    same = sum(a == b for a, b in zip(by_float, by_integers, strict=True))
    right = [sum(a == b for a, b in zip(texts, found, strict=True)) for found in (by_float, by_integers)]
    print(f"right: float {right[0]}, 8 bits {right[1]}, the same {same}, of {len(texts)} lines")


if __name__ == "__main__":
    main()
