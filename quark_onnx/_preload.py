"""What must be settled before anything else is imported; importing this module settles it.

`quark` is a namespace package that anyone may add to. A regular package of that name, AMD's amd-quark, cannot
share an environment with this one: whichever is installed later overwrites the other's files. And the C core
needs OpenBLAS: a normal install finds it beside this package, an editable one does not.
"""

from __future__ import annotations

import ctypes
import sys
from importlib.util import find_spec
from pathlib import Path

__all__: list[str] = []


def _refuse_regular_parent(parent: str) -> None:
    """Raises ImportError when the package around this one is regular: has an `__init__.py`."""
    init = getattr(sys.modules.get(parent), "__file__", None)
    if init is not None:
        raise ImportError(
            f"quark-onnx cannot share an environment with the package that owns {init} (amd-quark?): "
            "install quark-onnx in an environment of its own"
        )


def _load_openblas(site_packages: Path) -> None:
    """Loads the wheel scipy-openblas32's library, unless it is where the C core looks for it by itself.

    Its symbols stay private to the C core: SciPy ships a library with the same ones.
    """
    if (site_packages / "scipy_openblas32").is_dir():
        return
    spec = find_spec("scipy_openblas32")
    for folder in (spec and spec.submodule_search_locations) or ():
        for library in Path(folder, "lib").glob("libscipy_openblas*.so"):
            ctypes.CDLL(str(library))  # with RTLD_LOCAL; the C core then finds it by its name


_refuse_regular_parent(__name__.partition(".")[0])
_load_openblas(Path(__file__).parents[2])
