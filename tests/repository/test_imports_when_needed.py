"""What importing the package brings in, and that its names are those that type checkers see."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import quark.onnx

# What takes long to import, or what an installation need not have.
HEAVY = (
    *("sympy", "mpmath", "onnxslim", "torch", "matplotlib", "jinja2", "PIL", "click", "yaml", "pandas", "scipy"),
    *("setuptools", "sklearn", "IPython"),
)
SIX_NAMES = "from quark.onnx import ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, Int8Spec, AdaRoundConfig"


def brought(code: str) -> set[str]:
    """The top-level modules that a fresh process has after some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "code", ["import quark.onnx", SIX_NAMES, "from quark.onnx import *", "import quark.onnx.quantization.config"]
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not brought(code) & set(HEAVY)


def test_the_package_alone_needs_not_even_onnx() -> None:
    assert not brought("import quark.onnx") & {"onnx", "onnxruntime", "numpy", "rich"}


def test_a_name_brings_not_what_only_a_call_needs() -> None:
    assert not brought(f"{SIX_NAMES}; from quark.onnx import finetune, quantize") & {"rich", "fusion_utils"}


def test_submodules_are_there_as_attributes() -> None:
    code = "import quark.onnx; print(quark.onnx.quantization.QConfig, quark.onnx.errors.ConfigError)"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def for_type_checkers() -> dict[str, str]:
    """The names that the package imports for type checkers, with their modules."""
    tree = ast.parse(Path(quark.onnx.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


def test_names_are_those_that_type_checkers_see() -> None:
    seen = for_type_checkers()
    assert sorted(seen) == sorted(quark.onnx.__all__)
    for name, module in seen.items():
        if not name.endswith("_QCONFIG"):  # each import has a copy of its own
            assert getattr(quark.onnx, name) is getattr(import_module(module), name)
    assert set(quark.onnx.__all__) <= set(dir(quark.onnx))
