"""The build: the package map, one extension module, and OpenBLAS. Metadata stands in pyproject.toml."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy
from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent
NO_BLAS = """\
OpenBLAS was not found, and quark-onnx needs it to build. Either of these helps:
    pip install scipy-openblas32                              (the default: a wheel for every platform)
    apt install libopenblas-dev && QK_BLAS=system pip install .   (the distribution's own)"""


def scipy_openblas() -> dict[str, list[str]] | None:
    """OpenBLAS from the wheel scipy-openblas32: symbols prefixed, found at run time beside this package."""
    try:
        import scipy_openblas32 as blas
    except ImportError:
        return None
    lib = blas.get_lib_dir()
    # $ORIGIN is .../site-packages/quark/onnx. An absolute path would point into pip's temporary build environment.
    return {
        "include_dirs": [blas.get_include_dir()],
        "extra_compile_args": ["-DBLAS_SYMBOL_PREFIX=scipy_"],
        "extra_link_args": [f"-L{lib}", f"-l{blas.get_library()}", "-Wl,-rpath,$ORIGIN/../../scipy_openblas32/lib"],
    }


def system_openblas() -> dict[str, list[str]] | None:
    """The distribution's OpenBLAS, found by pkg-config."""
    try:
        flags = subprocess.run(["pkg-config", "--cflags", "--libs", "openblas"], capture_output=True, text=True)
    except OSError:
        return None
    if flags.returncode != 0:
        return None
    words = shlex.split(flags.stdout)
    return {
        "include_dirs": [],
        "extra_compile_args": [w for w in words if not w.startswith(("-l", "-L"))],
        "extra_link_args": [w for w in words if w.startswith(("-l", "-L"))],
    }


def openblas() -> dict[str, list[str]]:
    choice = os.environ.get("QK_BLAS", "")
    if choice not in ("", "scipy", "system"):
        sys.exit(f"QK_BLAS={choice!r} is not known; use QK_BLAS=scipy or QK_BLAS=system")
    finders = {"scipy": [scipy_openblas], "system": [system_openblas]}.get(choice, [scipy_openblas, system_openblas])
    for find in finders:
        if found := find():
            return found
    sys.exit(NO_BLAS)


def core() -> Extension:
    # isa_avx2.c and isa_avx512.c choose their instruction set themselves; no contraction, so that all give the same bits.
    blas = openblas()
    return Extension(
        "quark.onnx._core",
        sources=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.c")),
        depends=sorted(str(p.relative_to(ROOT)) for s in ("*.h", "*.inc") for p in (ROOT / "csrc").rglob(s)),
        include_dirs=["csrc", "csrc/include", numpy.get_include(), *blas["include_dirs"]],
        extra_compile_args=[
            "-std=c11", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-pthread", *blas["extra_compile_args"],
        ],
        extra_link_args=["-pthread", *blas["extra_link_args"]],
    )  # fmt: skip


# `quark` is a namespace package: it is never listed, and has no folder and no __init__.py.
setup(
    packages=["quark.onnx", *(f"quark.onnx.{p}" for p in find_packages("quark_onnx"))],
    package_dir={"quark.onnx": "quark_onnx"},
    package_data={"quark.onnx": ["py.typed", "_core.pyi"]},
    ext_modules=[core()],
)
