"""Who may import whom: in Python by the layers of the package, in C by the folders of csrc."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "quark_onnx"
CSRC = ROOT / "csrc"

# The floors from ground to roof: a module imports its own floor and those below it. What is not listed is the roof.
LAYERS = (
    "_preload",
    "errors",
    "operators",
    "missing_names",
    "config",
    "system",
    "own_errors",
    "stores",
    "inference",
    "graph",
    "model_files",
    "layers",
    "patterns",
    "preparation",
    "qdq",
    "plan",
    "calibration_data",
    "calibration",
    "report",
    "solvers",
    "whole_model",
    "sensitivity",
    "resume",
    "fast_finetune",
    "quantization",
    "comparison",
    "inspection",
    "cli",
)

# Folders of csrc and what each may include besides itself, qk.h and the C library.
C_LAYERS = {
    "base": set(),
    "kernels": {"base"},
    "ops": {"base", "kernels"},
    "moments": {"base", "kernels", "ops"},
    "solvers": {"base", "kernels", "ops", "moments"},
    "least_squares": {"base", "kernels", "ops", "moments", "solvers"},
    "loss": {"base", "kernels", "ops", "moments"},
    "training": {"base", "kernels", "ops", "moments", "solvers", "least_squares", "loss"},
    "calibration": {"base", "kernels", "ops", "moments"},
    "python": {"base"},
    "include": set(),
}

MODULES = sorted(PACKAGE.rglob("*.py"))
C_FILES = sorted(path for kind in ("*.c", "*.h", "*.inc") for path in CSRC.glob(f"*/{kind}"))


def layer_of(module: str) -> int:
    """The layer of a module's dotted name below quark.onnx: `graph.editor` is in `graph`."""
    parts = module.split(".")
    return LAYERS.index(parts[0]) if parts[0] in LAYERS else len(LAYERS)


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted names that a module imports; `from a import b` gives `a.b`."""
    package = ["quark", "onnx", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), re.MULTILINE)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_imports_only_layers_below(path: Path) -> None:
    mine = layer_of(dotted_name(path))
    own = [n.removeprefix("quark.onnx.") for n in imports(path) if n.startswith("quark.onnx.")]
    above = [n for n in own if not n.startswith("_core") and layer_of(n) > mine]
    assert not above, f"{name(path)} imports {above}, which stand above it"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_configuration_and_errors_need_no_model_library(path: Path) -> None:
    if layer_of(dotted_name(path)) > LAYERS.index("config"):
        return
    libraries = {n.split(".")[0] for n in imports(path)}
    assert not libraries & {"onnx", "onnxruntime"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_imports_torch(path: Path) -> None:
    assert "torch" not in {n.split(".")[0] for n in imports(path)}


@pytest.mark.parametrize("path", C_FILES, ids=name)
def test_a_c_file_includes_only_layers_below(path: Path) -> None:
    folder = path.parent.name
    allowed = C_LAYERS[folder] | {folder}
    for header in includes(path):
        if (CSRC / header).exists():
            assert header.split("/")[0] in allowed or header in allowed, f"{name(path)} includes {header}"


def test_every_folder_of_c_files_is_listed() -> None:
    assert {path.parent.name for path in C_FILES} == C_LAYERS.keys()


def test_no_two_c_files_have_one_name() -> None:
    sources = {path.name: path for path in C_FILES if path.parent.name != "python"}
    assert len(sources) == sum(path.parent.name != "python" for path in C_FILES)
    for path in CSRC.glob("python/*.c"):
        if twin := sources.get(path.name):
            assert twin.relative_to(CSRC).as_posix() in path.read_text().splitlines()[0], name(path)


@pytest.mark.parametrize("path", sorted(CSRC.glob("*/*.c")), ids=name)
def test_a_c_file_includes_its_own_header(path: Path) -> None:
    header = path.with_suffix(".h")
    assert not header.exists() or header.relative_to(CSRC).as_posix() in includes(path)


@pytest.mark.parametrize("path", C_FILES, ids=name)
def test_only_the_binding_knows_python(path: Path) -> None:
    foreign = [h for h in includes(path) if h == "Python.h" or h.startswith("numpy/")]
    assert not foreign or path.parent.name == "python"


def test_only_one_file_knows_blas() -> None:
    assert [name(p) for p in C_FILES if "cblas.h" in includes(p)] == ["csrc/base/blas.c"]


@pytest.mark.parametrize("folder", ["quark_onnx", "csrc", "tests", "examples", "benchmarks"])
def test_no_file_is_long(folder: str) -> None:
    kinds = {".py", ".pyi", ".c", ".h", ".inc"}
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in kinds]
    lengths = {name(p): len(p.read_text().splitlines()) for p in files}
    assert {file: n for file, n in lengths.items() if n > 500} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("*.py")), ids=lambda path: path.name)
def test_no_module_of_the_tests_holds_a_random_stream(path: Path):
    """What a test draws from it would depend on the tests before it."""
    streams = {"default_rng", "Generator", "RandomState", "Random", "Weights"}
    for statement in ast.parse(path.read_text()).body:
        value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
        for made in value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value]:
            if isinstance(made, ast.Call):
                name = made.func.attr if isinstance(made.func, ast.Attribute) else getattr(made.func, "id", "")
                assert name not in streams, f"{path.name}:{statement.lineno}: give each test a generator of its own"


def test_the_unit_tests_mirror_the_package() -> None:
    folders = {
        path.name for path in (ROOT / "tests" / "unit").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    package = {path.name for path in (ROOT / "quark_onnx").iterdir() if path.is_dir()}
    assert folders - {"benchmarks", "core"} <= package
