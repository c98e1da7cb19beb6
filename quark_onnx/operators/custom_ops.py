"""The library that scripts for AMD Quark register with onnxruntime; its entry is csrc/python/custom_ops.c."""

from __future__ import annotations

from quark.onnx import _core

__all__ = ["get_library_path"]


def get_library_path(device: str = "CPU") -> str:
    """A library for `SessionOptions.register_custom_ops_library`. It adds nothing: the models have standard operators.

    Args:
        device: of any name, as there is nothing for any of them.
    """
    del device
    return _core.__file__
