"""README.md and the pages of docs/: code runs as it stands there, and links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import Reader, embedding, mlp, run, samples, separable_cnn

from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.cli.main import main

Image = pytest.importorskip("PIL.Image")  # the pages read folders of images

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DECISIONS = sorted(DOCS.glob("decisions/0*.md"))
PAGES = sorted(set(DOCS.rglob("*.md")) - set(DECISIONS))
OTHERS = [*sorted(ROOT.glob("*.md")), *(ROOT / folder / "README.md" for folder in ("benchmarks", "csrc", "examples"))]

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FILE = re.compile(r"# (\w+\.py)\n")


@dataclass(frozen=True)
class Block:
    """A block of code of a page, with the number of lines before its first."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(found[1], found[2], text.count("\n", 0, found.start(2))) for found in _BLOCK.finditer(text)]


def commands(block: Block) -> Iterator[list[str]]:
    """The arguments of each call of quark-onnx in a block for the shell."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["quark-onnx"]:
            yield words[1:]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages take for given."""
    folder = tmp_path_factory.mktemp("files")
    model = separable_cnn()
    onnx.save(model, folder / "model.onnx")
    x = samples(model, 48)["x"]
    np.savez(folder / "samples.npz", x=x)
    np.save(folder / "samples.npy", x)
    unseen = samples(model, 32, seed=1)
    np.savez(folder / "unseen.npz", **unseen)
    np.save(folder / "images.npy", unseen["x"])
    np.save(folder / "labels.npy", run(model, unseen)[0].argmax(axis=1))
    (folder / "arrays").mkdir()
    for index, sample in enumerate(x):
        np.save(folder / "arrays" / f"{index:02}.npy", sample)
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(pixels.integers(0, 256, (10, 12, 3), np.uint8)).save(folder / "photos" / f"{index:02}.png")
    plain = QConfig(QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()))
    ModelQuantizer(plain).quantize_model(model, folder / "model_qdq.onnx", x)
    shutil.copy(folder / "model_qdq.onnx", folder / "other_tools_int8.onnx")
    onnx.save(with_channels_last(model), folder / "nhwc.onnx")
    onnx.save(embedding(), folder / "text.onnx")
    for name, array in samples(embedding(), 48).items():
        np.save(folder / f"{name}.npy", array)
    onnx.save(mlp(), folder / "blocks.onnx")
    np.save(folder / "blocks.npy", next(iter(samples(mlp(), 48).values())))
    return folder


def with_channels_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its input x as (samples, height, width, channels)."""
    samples, channels, height, width = model.graph.input[0].type.tensor_type.shape.dim
    entry = onnx.helper.make_tensor_value_info(
        "image", onnx.TensorProto.FLOAT, [samples.dim_param, height.dim_value, width.dim_value, channels.dim_value]
    )
    result = onnx.ModelProto()
    result.CopyFrom(model)
    result.graph.input[0].CopyFrom(entry)
    result.graph.node.insert(0, onnx.helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]))
    return result


@pytest.fixture
def folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: a copy of these files, from which modules can be imported."""
    copy = shutil.copytree(files, tmp_path / "page")
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)
    yield copy
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").is_relative_to(copy):
            del sys.modules[name]


@pytest.mark.sets_apart
@pytest.mark.islands
@pytest.mark.parametrize("page", [page for page in (ROOT / "README.md", *PAGES) if blocks(page)], ids=name_of)
def test_the_code_of_a_page_runs_in_order(page: Path, folder: Path) -> None:
    """Python in one namespace; a block that begins with the name of a file is that file."""
    names = {"__name__": "__main__"}
    ran = 0
    for block in blocks(page):
        if block.language == "python":
            if written := _FILE.match(block.text):
                (folder / written[1]).write_text(block.text, encoding="utf-8")
                importlib.invalidate_caches()
            else:
                # A page says that the reader is the user's own. It is read once, so each block has a new one.
                names["calibration_data_reader"] = Reader({"x": np.load("samples.npy")})
                exec(compile("\n" * block.line + block.text, page, "exec"), names)
            ran += 1
        elif block.language == "sh":
            for arguments in commands(block):
                assert main(arguments) == 0, f"{name_of(page)}: quark-onnx {shlex.join(arguments)}"
                ran += 1
        else:
            pytest.fail(f"{name_of(page)}, line {block.line}: nothing runs {block.language}")
    assert ran


@pytest.mark.parametrize("page", [*PAGES, *DECISIONS, *OTHERS], ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue  # elsewhere
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (heading and heading not in headings(target)):
            broken.append(link)
    assert not broken


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, *sorted(DOCS.rglob("*.rst"))], ids=name_of)
def test_a_page_begins_with_its_question(page: Path) -> None:
    title, _, rest = page.read_text(encoding="utf-8").partition("\n\n")
    assert re.fullmatch(r"# .+" if page.suffix == ".md" else r".+\n=+", title)
    assert re.match(r"This page answers: [^\n]+\?\n", rest)


def test_the_index_has_every_page() -> None:
    listed = {(DOCS / link).resolve() for link in _LINK.findall((DOCS / "README.md").read_text(encoding="utf-8"))}
    known = {DOCS / "api" / "index.rst", *PAGES, *OTHERS} - {DOCS / "README.md", ROOT / "README.md"}
    assert listed == known
