"""The build: the package map, the C core with OpenBLAS, the dependencies. The rest is in pyproject.toml."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent

DEPENDENCIES = [  # why each is there, and at least this version: docs/decisions/0001-dependencies.md
    "click>=8.2",
    "numpy>=2.0",
    "onnx>=1.21",
    "onnxruntime>=1.32",
    "pyyaml>=6.0.2",
    "rich>=13",
    "jinja2>=3.1",
]

NO_OPENBLAS = """\
OpenBLAS was not found, and quark-onnx needs it to build. Either of these helps:
    pip install scipy-openblas32                                            (the default: a wheel)
    apt install libopenblas-dev pkg-config && QK_BLAS=system pip install .  (the distribution's own)"""


class OpenBlas(NamedTuple):
    """How to compile and link against OpenBLAS, and what it needs at run time."""

    name: str
    compile_args: list[str]
    link_args: list[str]
    requires: list[str]
    licence: Path | None = None  # goes into a wheel that holds the library


def scipy_openblas() -> OpenBlas | None:
    """The wheel scipy-openblas32: its symbols have a prefix, its library stands beside this package."""
    try:
        import scipy_openblas32 as blas
    except ImportError:
        return None
    return OpenBlas(
        name="scipy",
        compile_args=[f"-I{blas.get_include_dir()}", "-DBLAS_SYMBOL_PREFIX=scipy_"],
        # $ORIGIN is site-packages/quark/onnx. An absolute path would name pip's temporary environment.
        link_args=[
            f"-L{blas.get_lib_dir()}",
            f"-l{blas.get_library()}",
            "-Wl,-rpath,$ORIGIN/../../scipy_openblas32/lib",
        ],
        requires=["scipy-openblas32>=0.3.27"],
    )


def bundled_openblas() -> OpenBlas | None:
    """The same library for a wheel that is to hold it: auditwheel puts it there (pyproject.toml, cibuildwheel)."""
    found = scipy_openblas()
    if found is None:
        return None
    plain = [word for word in found.link_args if not word.startswith("-Wl,-rpath")]
    (licence,) = (file for file in files("scipy-openblas32") or () if file.name == "LICENSE.txt")
    return found._replace(name="bundled", link_args=plain, requires=[], licence=Path(licence.locate()))


def system_openblas() -> OpenBlas | None:
    """The distribution's OpenBLAS, found by pkg-config."""

    def flags(kind: str) -> list[str]:
        return shlex.split(subprocess.check_output(["pkg-config", kind, "openblas"], text=True))

    try:
        return OpenBlas("system", flags("--cflags"), flags("--libs"), requires=[])
    except (OSError, subprocess.CalledProcessError):
        return None


def openblas() -> OpenBlas:
    """The OpenBLAS that QK_BLAS names; unset, the first that is there."""
    finders = {"scipy": scipy_openblas, "system": system_openblas, "bundled": bundled_openblas}
    choice = os.environ.get("QK_BLAS", "")
    if choice and choice not in finders:
        sys.exit(f"QK_BLAS={choice} is not known; use QK_BLAS=scipy, QK_BLAS=system or QK_BLAS=bundled")
    for find in [finders[choice]] if choice else finders.values():
        if found := find():
            return found
    sys.exit(NO_OPENBLAS)


class BuildExtension(build_ext):
    """Leaves out the folders where Python was built, which some Pythons add to the linker; makes a C string of the
    kernels of devices, as csrc/Makefile does; adds OpenBLAS's licence."""

    def build_extensions(self) -> None:
        self.mkpath(self.build_temp)
        text = "".join((ROOT / "csrc/device" / name).read_text() for name in ("arguments.h", "kernels.cl"))
        lines = [line.replace("\\", "\\\\").replace('"', '\\"') for line in text.splitlines()]
        Path(self.build_temp, "kernels_cl.txt").write_text("".join(f'"{line}\\n"\n' for line in lines))
        self.compiler.add_include_dir(self.build_temp)
        self.compiler.linker_so = [word for word in self.compiler.linker_so if not word.startswith("-Wl,-rpath")]
        super().build_extensions()
        if blas.licence is not None:
            shutil.copy(blas.licence, Path(self.build_lib, "quark", "onnx", "OPENBLAS_LICENSE.txt"))


def sources(*patterns: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern))


def long_description() -> str:
    """README.md without its links to files of the repository, which a package index does not have."""
    return re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", (ROOT / "README.md").read_text())


blas = openblas()
# kernels/isa_*.c choose their instruction sets themselves; without contraction to FMA all give the same bits.
core = Extension(
    "quark.onnx._core",
    sources=sources("*/*.c"),
    depends=["setup.py", *sources("*/*.h", "*/*.inc", "*/*.cl")],
    include_dirs=["csrc", "csrc/include", numpy.get_include()],
    extra_compile_args=[
        *(
            "-std=c11",
            "-O3",
            "-g0",  # debugging information names the builder's folders; `make -C csrc` has it
            "-ffp-contract=off",
            "-fno-math-errno",
            "-fno-trapping-math",
            "-fvisibility=hidden",
            "-pthread",
        ),
        *blas.compile_args,
    ],
    extra_link_args=["-pthread", *blas.link_args, "-lm", "-ldl"],
)


def packages() -> dict[str, Any]:
    """The packages and where they lie. `quark` is a namespace package, which has no folder and no __init__.py.

    An editable install goes through a folder that is named as the package is imported: type checkers and editors follow
    a path, but not the import hook that setuptools writes where names differ. It writes a path if `quark` is listed.
    """
    names = ["quark.onnx", *(f"quark.onnx.{name}" for name in find_packages("quark_onnx"))]
    if "editable_wheel" not in sys.argv:
        return {"packages": names, "package_dir": {"quark.onnx": "quark_onnx"}}
    link = ROOT / "build" / "editable" / "quark" / "onnx"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(ROOT / "quark_onnx", link.parent))
    return {"packages": ["quark", *names], "package_dir": {"": "build/editable"}}


setup(
    **packages(),
    package_data={"quark.onnx": ["py.typed", "_core.pyi"], "quark.onnx.report.views": ["templates/*.j2"]},
    ext_modules=[core],
    cmdclass={"build_ext": BuildExtension},
    install_requires=[*DEPENDENCIES, *blas.requires],
    long_description=long_description(),
    long_description_content_type="text/markdown",
    # What was compiled for one OpenBLAS must not be taken for the other.
    options={"build": {"build_base": f"build/{blas.name}"}},
)
