"""What users install: the sdist, the wheel built from it, an editable install; and what they cannot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import quark.onnx
from quark.onnx import _core

ROOT = Path(__file__).parents[2]

# Imports the package, calls BLAS through the core, and names the file that was imported.
USE = """
import numpy as np, quark.onnx
from quark.onnx import _core
layer, pool = _core.Layer(200, 3, 4, 1000), _core.ThreadPool(2)
layer.feed(np.ones((4, 200), np.float32), np.ones((4, 3), np.float32), pool)
assert layer.moments(pool, False)[1].sum() == 200 * 200
print(quark.onnx.__file__)
"""


def run(*command: object, cwd: Path | str = "/", **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QK_BLAS")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean | environment, capture_output=True, text=True
    )


def succeed(*command: object, cwd: Path | str = "/", **environment: str) -> str:
    result = run(*command, cwd=cwd, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def new_environment(folder: Path) -> Path:
    """The interpreter of a fresh virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree, without what was built in it."""
    folder = tmp_path_factory.mktemp("checkout") / "quark-onnx"
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "__pycache__")
    shutil.copytree(ROOT, folder, ignore=built)
    return folder


@pytest.fixture(scope="module")
def built(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("built")
    succeed(sys.executable, "-m", "build", "--outdir", folder, checkout)
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it depends on."""
    python = new_environment(tmp_path_factory.mktemp("installed"))
    succeed(python, "-m", "pip", "install", next(built.glob("*.whl")))
    return python


@pytest.mark.install
def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    names = zipfile.ZipFile(next(built.glob("*.whl"))).namelist()
    assert "quark/__init__.py" not in names
    package = {n for n in names if ".dist-info/" not in n}
    files = (*(ROOT / "quark_onnx").rglob("*.py*"), *(ROOT / "quark_onnx").rglob("*.j2"))
    sources = {f"quark/onnx/{p.relative_to(ROOT / 'quark_onnx')}" for p in files}
    sources = {n for n in sources if not n.endswith(".pyc")} | {"quark/onnx/py.typed"}
    (core,) = package - sources
    assert sources <= package
    assert core.startswith("quark/onnx/_core.")
    assert core.endswith(".so")


@pytest.mark.install
def test_the_description_has_no_link_that_leads_nowhere(built: Path) -> None:
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    (metadata,) = (wheel.read(n).decode() for n in wheel.namelist() if n.endswith("/METADATA"))
    description = metadata.partition("\n\n")[2]
    assert description.startswith("# quark-onnx")
    assert "in pictures" in description
    assert all(link.startswith("https:") for link in re.findall(r"\]\(([^)]*)\)", description))


@pytest.mark.install
def test_the_wheel_works_in_any_directory(installed: Path, tmp_path: Path) -> None:
    for folder in (tmp_path, ROOT, ROOT / "quark_onnx", "/"):
        assert "site-packages/quark/onnx/__init__.py" in succeed(installed, "-c", USE, cwd=folder)


@pytest.mark.install
def test_an_editable_install_works_in_any_directory(checkout: Path, tmp_path: Path) -> None:
    python = new_environment(tmp_path / "environment")
    succeed(python, "-m", "pip", "install", "-e", checkout)
    for folder in (tmp_path, checkout, "/"):
        imported = succeed(python, "-c", USE, cwd=folder).strip()
        assert Path(imported).resolve() == checkout / "quark_onnx" / "__init__.py"
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text("from quark.onnx import Int8Spec\nreveal_type(Int8Spec().symmetric)\n")
    checked = run(sys.executable, "-m", "mypy", "--python-executable", python, tmp_path / "script.py", cwd=tmp_path)
    assert 'Revealed type is "bool"' in checked.stdout  # type checkers see it, too


@pytest.mark.install
@pytest.mark.skipif(
    shutil.which("pkg-config") is None or run("pkg-config", "--exists", "openblas").returncode != 0,
    reason="needs the distribution's OpenBLAS and pkg-config",
)
def test_the_system_openblas_replaces_the_wheel(checkout: Path, tmp_path: Path) -> None:
    succeed(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, checkout, QK_BLAS="system")
    wheel = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    (core,) = (wheel.read(n) for n in wheel.namelist() if n.endswith(".so"))
    (metadata,) = (wheel.read(n).decode() for n in wheel.namelist() if n.endswith("/METADATA"))
    assert b"scipy_openblas" not in core
    assert b"libopenblas" in core
    assert "Requires-Dist: numpy" in metadata
    assert "Requires-Dist: scipy-openblas32" not in metadata


@pytest.mark.install
@pytest.mark.skipif(shutil.which("auditwheel") is None, reason="needs auditwheel")
def test_a_wheel_that_holds_openblas_needs_nothing_else(checkout: Path, tmp_path: Path) -> None:
    """As cibuildwheel makes it (pyproject.toml), but for the manylinux image."""
    raw, repaired = tmp_path / "raw", tmp_path / "repaired"
    succeed(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", raw, checkout, QK_BLAS="bundled")
    folder = succeed(sys.executable, "-c", "import scipy_openblas32 as b; print(b.get_lib_dir())").strip()
    succeed("auditwheel", "repair", "-w", repaired, *raw.glob("*.whl"), LD_LIBRARY_PATH=folder)
    (wheel,) = repaired.glob("*manylinux*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = held.namelist()
        metadata = next(held.read(name).decode() for name in names if name.endswith("/METADATA"))
    assert "Requires-Dist: scipy-openblas32" not in metadata
    assert "quark/onnx/OPENBLAS_LICENSE.txt" in names
    assert [name for name in names if name.startswith("quark_onnx.libs/libscipy_openblas")]
    python = new_environment(tmp_path / "environment")
    succeed(python, "-m", "pip", "install", wheel)
    assert "site-packages/quark/onnx/__init__.py" in succeed(python, "-c", USE)


def test_the_core_names_no_folder_of_the_builder() -> None:
    core = Path(_core.__file__).read_bytes()
    for folder in (sysconfig.get_config_var("LIBDIR"), sys.prefix, sys.base_prefix, str(ROOT)):
        assert folder in ("/usr", "/usr/lib") or folder.encode() not in core


def setup_without_openblas(choice: str) -> str:
    """What setup.py says where neither scipy-openblas32 nor pkg-config is found."""
    pytest.importorskip("setuptools")
    script = "import runpy, sys; sys.modules['scipy_openblas32'] = None; sys.argv = ['setup.py', '--version'];"
    result = run(sys.executable, "-c", script + "runpy.run_path('setup.py')", cwd=ROOT, QK_BLAS=choice, PATH="")
    assert result.returncode == 1
    return result.stderr


def test_without_openblas_the_build_names_both_commands() -> None:
    for choice in ("", "scipy", "system", "bundled"):
        message = setup_without_openblas(choice)
        assert "pip install scipy-openblas32 " in message
        assert "apt install libopenblas-dev pkg-config && QK_BLAS=system pip install . " in message


def test_an_unknown_openblas_is_refused() -> None:
    message = "QK_BLAS=mkl is not known; use QK_BLAS=scipy, QK_BLAS=system or QK_BLAS=bundled\n"
    assert setup_without_openblas("mkl") == message


def test_a_regular_quark_package_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "quark" / "__init__.py"
    foreign.parent.mkdir()
    foreign.write_text("")
    (foreign.parent / "onnx").symlink_to(Path(quark.onnx.__file__).parent)
    result = run(sys.executable, "-c", "import quark.onnx", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        f"ImportError: quark-onnx cannot share an environment with the package that owns {foreign} "
        "(amd-quark?): install quark-onnx in an environment of its own"
    )
