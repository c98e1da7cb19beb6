"""Models that people install from the package index: installed into a folder of their own, quantized and finetuned.

Run with `pytest -m packages`; needs pip and an index.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Arrays, run

from quark.onnx import (
    AdaRoundConfig,
    AlgoConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)

PACKAGES = ("rapidocr-onnxruntime==1.4.4", "magika==1.0.3", "silero-vad==6.2.3", "basic-pitch==0.4.0")
OCR = "rapidocr_onnxruntime/models"
VAD = "silero_vad/data"
PITCH = "basic_pitch/saved_models/icassp_2022/nmp.onnx"
FOUND = "its weight is computed by the model, not constant"

pytestmark = pytest.mark.packages


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, without what they depend on: only their files are wanted."""
    folder = tmp_path_factory.mktemp("packages")
    command = (sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--target", str(folder), *PACKAGES)
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_ocr_example_reads_what_the_float_model_reads(installed: Path, tmp_path: Path) -> None:
    program = Path(__file__).parents[3] / "examples" / "ocr.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(program)]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = re.findall(r"right: float (\d+), 8 bits (\d+), the same (\d+)", ran.stdout)
    by_float, by_integers, same = map(int, found[0])
    assert same > 48  # of 64
    assert by_integers > by_float - 6


class Items:
    """A reader over these items."""

    def __init__(self, items: list[Arrays]) -> None:
        self._items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


def lines_of_text(count: int, height: int, width: int) -> list[Arrays]:
    """Dark strokes on a light page."""
    random = np.random.default_rng(0)
    pages = np.ones((count, 3, height, width), np.float32)
    for page in pages:
        for left in range(8, width - 16, 12):
            top, tall, wide = random.integers(4, height // 3), random.integers(8, height // 2), random.integers(2, 9)
            page[:, top : top + tall, left : left + wide] = random.uniform(-1, 0)
            page[:, top + tall // 2 : top + tall // 2 + 3, left : left + 10] = random.uniform(-1, 0)
    return [{"x": page[None]} for page in pages]


def files(count: int) -> list[Arrays]:
    """The first and last 1024 bytes of Python's own files, as Magika reads them; 256 where there is no byte."""
    paths = [p for p in sorted(Path(np.__file__).parent.rglob("*")) if p.is_file() and p.stat().st_size > 0]
    items = []
    for path in paths[:: len(paths) // count][:count]:
        content, tokens = np.frombuffer(path.read_bytes(), np.uint8), np.full(2048, 256, np.int32)
        first, last = content[:1024], content[-1024:]
        tokens[: len(first)], tokens[2048 - len(last) :] = first, last
        items.append({"bytes": tokens[None]})
    return items


def sounds(count: int, **others: np.ndarray) -> list[Arrays]:
    """Vowels of a kind, with noise: 36 ms at 16 kHz."""
    random, time = np.random.default_rng(0), np.arange(576) / 16000
    items = []
    for _ in range(count):
        pitch = random.uniform(80, 300)
        tones = sum(random.normal() / k * np.sin(2 * np.pi * k * pitch * time) for k in range(1, 12))
        wave = 0.1 * tones + 0.01 * random.standard_normal(576)
        items.append({"input": wave[None].astype(np.float32), **others})
    return items


def notes(count: int, seed: int) -> list[Arrays]:
    """Three to eight struck strings each, with noise: 2 s at 22.05 kHz."""
    random, time = np.random.default_rng(seed), np.arange(43844) / 22050
    items = []
    for _ in range(count):
        wave = 1e-3 * random.standard_normal(len(time))
        for _ in range(random.integers(3, 9)):
            pitch, start = 440 * 2 ** ((random.integers(36, 90) - 69) / 12), random.integers(0, len(time) - 4000)
            lasting = time[: random.integers(4000, len(time) + 1 - start)]
            harmonics = [k for k in range(1, 8) if k * pitch < 10000]
            tones = sum(np.sin(2 * np.pi * k * pitch * lasting + random.uniform(0, 6)) / k**1.3 for k in harmonics)
            decay = np.exp(-lasting * random.uniform(0.5, 4))
            wave[start : start + len(lasting)] += random.uniform(0.03, 0.3) * decay * tones
        items.append({"serving_default_input_2:0": wave.astype(np.float32)[None, :, None]})
    return items


STATE = np.zeros((2, 1, 128), np.float32)
RATE = np.array(16000)
MODELS = {
    "OCR, angle": (f"{OCR}/ch_ppocr_mobile_v2.0_cls_infer.onnx", lambda: lines_of_text(16, 48, 192), {}),
    "OCR, detection": (f"{OCR}/ch_PP-OCRv4_det_infer.onnx", lambda: lines_of_text(8, 96, 160), {}),
    "OCR, recognition": (
        f"{OCR}/ch_PP-OCRv4_rec_infer.onnx",
        lambda: lines_of_text(12, 48, 160),
        {f"p2o.MatMul.{i}": FOUND for i in (2, 4, 14, 16)},  # attention
    ),
    "type of a file": ("magika/models/standard_v3_3/model.onnx", lambda: files(24), {}),
    "speech, one rate": (
        f"{VAD}/silero_vad_16k_sequence.onnx",
        lambda: sounds(30, h=STATE[:1], c=STATE[:1]),
        {},
    ),
    "speech, branches": (f"{VAD}/silero_vad_16k_op15.onnx", lambda: sounds(30, state=STATE, sr=RATE), {}),
    "speech, half": (f"{VAD}/silero_vad_half.onnx", lambda: sounds(30, state=STATE), {}),
    "speech, fixed shape": (f"{VAD}/silero_vad_openvino_16k.onnx", lambda: sounds(30, state=STATE), {}),
}  # fmt: skip


def quantized(path: Path, items: list[Arrays], *algorithms: AlgoConfig) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms))
    return quantizer.quantize_model(path, None, Items(items)), quantizer.report


@pytest.mark.parametrize(("file", "data", "skipped"), MODELS.values(), ids=MODELS)
def test_a_model_of_a_package(file: str, data: object, skipped: dict[str, str], installed: Path) -> None:
    model, items = onnx.load(installed / file), data()
    tuned, report = quantized(installed / file, items, AdaRoundConfig())
    plain, _ = quantized(installed / file, items)
    others = {layer.node: layer.reason for layer in report.skipped if layer.op_type in ("Conv", "Gemm", "MatMul")}
    assert others == skipped
    assert any(layer.accepted for layer in report.layers)
    assert all(layer.accepted or layer.reason for layer in report.layers)

    def error(result: onnx.ModelProto) -> float:
        outputs = (zip(run(model, item), run(result, item), strict=True) for item in items)
        return sum(float(((want - have) ** 2).sum()) for pairs in outputs for want, have in pairs)

    assert error(tuned) < error(plain)


def test_a_model_that_is_two_branches(installed: Path) -> None:
    """One for each rate: all layers lie in the bodies of an If."""
    _, report = quantized(installed / VAD / "silero_vad.onnx", sounds(12, state=STATE, sr=RATE), AdaRoundConfig())
    assert not report.layers
    assert any(
        re.search(r"no layer can be finetuned: .*stft.* \(Conv\): it lies in the body of If 'If_", line)
        for line in report.warnings
    )


@pytest.mark.islands
def test_a_model_that_8_bits_destroy_finds_the_notes_with_islands(installed: Path) -> None:
    """Its front end is filters in front of a logarithm. The same probabilities are above a half, in every output."""
    model, unseen = onnx.load(installed / PITCH), notes(8, seed=1)
    plain, report = quantized(installed / PITCH, notes(32, seed=0))
    assert any("stay in float, as their quantizers alone destroy the model" in note for note in report.notes)
    right, found = np.zeros(3), np.zeros(3)
    for item in unseen:
        for i, (want, have) in enumerate(zip(run(model, item), run(plain, item), strict=True)):
            right[i] += ((want > 0.5) & (have > 0.5)).sum()
            found[i] += (want > 0.5).sum() + (have > 0.5).sum()
    assert (2 * right / found > 0.85).all(), 2 * right / found
