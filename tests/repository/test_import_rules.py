"""Who may import whom: in Python by the layers of the package, in C by the folders of csrc."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "quark_onnx"
CSRC = ROOT / "csrc"

# The storeys from ground to roof: a module imports its own room and those of the storeys below it, no room beside it.
# What is not listed is the roof. docs/architecture.svg is drawn from it.
STOREYS = (
    ("_preload", "errors", "missing_names", "operators", "stores", "measures"),
    ("config", "system"),
    ("config.amd_quark", "own_errors", "inference"),
    ("graph",),
    ("model_files", "patterns", "layers"),
    ("preparation", "qdq", "core_view"),
    ("calibration_data", "plan"),
    ("calibration",),
    ("report",),
    ("solvers",),
    ("whole_model", "resume"),
    ("sensitivity", "fast_finetune"),
    ("mixed_precision",),
    ("quantization",),
    ("inspection", "comparison", "diagnosis"),
    ("cli",),
)

# Folders of csrc and what each may include besides itself, qk.h and the C library.
C_LAYERS = {
    "base": set(),
    "device": {"base"},
    "kernels": {"base"},
    "ops": {"base", "kernels"},
    "moments": {"base", "device", "kernels", "ops"},
    "solvers": {"base", "kernels", "ops", "moments"},
    "least_squares": {"base", "kernels", "ops", "moments", "solvers"},
    "loss": {"base", "device", "kernels", "ops", "moments"},
    "training": {"base", "device", "kernels", "ops", "moments", "solvers", "least_squares", "loss"},
    "calibration": {"base", "kernels", "ops", "moments"},
    "python": {"base"},
    "include": set(),
}

# The only imports inside functions, and why they wait for a call.
LATE_IMPORTS = {
    "PIL": "optional: without it every reader but that of images works",
    "jinja2": "takes time to import, and few runs write a page",
    "matplotlib": "optional: the extra `plot`",
    "quark.onnx.quantization.calls": "200 modules, for which nobody waits who only makes a configuration",
    "resource": "is not there on every system",
}

MODULES = sorted(PACKAGE.rglob("*.py"))
C_FILES = sorted(path for kind in ("*.c", "*.h", "*.inc") for path in CSRC.glob(f"*/{kind}"))


def room_of(module: str) -> str:
    """The room of a module's dotted name below quark.onnx: `graph.editor` is in `graph`; "": the roof."""
    rooms = (room for storey in STOREYS for room in storey if f"{module}.".startswith(f"{room}."))
    return max(rooms, key=len, default="")


def storey_of(room: str) -> int:
    return next((at for at, storey in enumerate(STOREYS) if room in storey), len(STOREYS))


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted names that a module imports; `from a import b` gives `a.b`."""
    return imported(path, ast.walk(ast.parse(path.read_text())))


def imported(path: Path, nodes: Iterable[ast.AST]) -> Iterator[str]:
    package = ["quark", "onnx", *path.relative_to(PACKAGE).parent.parts]
    for node in nodes:
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
def test_a_module_imports_only_rooms_below(path: Path) -> None:
    """A folder's __init__ may offer what the rooms in its folder hold."""
    module = dotted_name(path)
    mine = room_of(module)
    own = (n.removeprefix("quark.onnx.") for n in imports(path) if n.startswith("quark.onnx."))
    others = {n: room_of(n) for n in own if not n.startswith("_core") and room_of(n) != mine}
    if path.name == "__init__.py":
        others = {n: room for n, room in others.items() if not room.startswith(f"{module}.")}
    above = [n for n, room in others.items() if storey_of(room) >= storey_of(mine)]
    assert not above, f"{name(path)} imports {above}, which do not stand below it"


def test_no_modules_import_each_other() -> None:
    """What only types need is left out: a view of a report names its type, and the report is shown by its views."""
    names = {dotted_name(path) for path in MODULES} - {""}
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        nodes = [n for s in ast.parse(path.read_text()).body if not only_for_types(s) for n in ast.walk(s)]
        own = {n.removeprefix("quark.onnx.") for n in imported(path, nodes)}
        own = {n if n in names else n.rpartition(".")[0] for n in own}
        uses[dotted_name(path)] = (own & names) - {dotted_name(path)}
    TopologicalSorter(uses).prepare()  # raises CycleError, which names the modules


def only_for_types(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_stand_at_the_top(path: Path) -> None:
    """An import inside a function hides an arrow of the drawing above."""
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.FunctionDef, ast.Lambda))]
    late = {n for function in functions for n in imported(path, ast.walk(function))}
    hidden = sorted(n for n in late if not any(f"{n}.".startswith(f"{known}.") for known in LATE_IMPORTS))
    assert not hidden, f"{name(path)} imports inside a function: {hidden}"


@pytest.mark.parametrize("tree", [PACKAGE, CSRC], ids=name)
def test_no_folder_is_full(tree: Path) -> None:
    """A folder shows its idea to who lists it. A C file and its header count as one."""
    ideas: dict[str, set[str]] = {}
    for path in [*MODULES, *C_FILES]:
        if path.is_relative_to(tree):
            ideas.setdefault(name(path.parent), set()).add(path.stem)
    assert {folder: len(files) for folder, files in ideas.items() if len(files) > 15} == {}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_configuration_and_errors_need_no_model_library(path: Path) -> None:
    if room_of(dotted_name(path)) not in {"errors", "missing_names", "operators", "config", "config.amd_quark"}:
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


def test_python_files_of_one_name_say_so() -> None:
    """A module and its C side name each other; AMD Quark's paths offer what `config` has."""
    sources = {path.stem: path for path in C_FILES}
    seen: dict[str, Path] = {}
    for path in MODULES:
        first = path.read_text().partition("\n")[0]
        if path.stem in sources:
            twin = sources[path.stem].relative_to(ROOT).with_suffix("").as_posix()
            assert twin in first, f"{name(path)}: its first line does not name its C side, {twin}.c"
        if path.name != "__init__.py" and not path.is_relative_to(PACKAGE / "quantization" / "config"):
            assert path.name not in seen, f"{name(path)} and {name(seen[path.name])} have one name"
            seen[path.name] = path


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


@pytest.mark.parametrize("folder", ["quark_onnx", "csrc", "tests", "examples", "benchmarks", "docs"])
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
