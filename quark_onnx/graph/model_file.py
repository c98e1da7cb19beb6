"""Models on disk, read with clear errors. How they are written: saved_model.py."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx.external_data_helper import uses_external_data

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes

__all__ = ["ModelLike", "load_model"]

ModelLike: TypeAlias = str | os.PathLike[str] | onnx.ModelProto


def load_model(model: ModelLike, *, role: str) -> onnx.ModelProto:
    """Read a model, external data included; the result is the caller's own to change.

    It names no missing inputs at the end of a node.

    Args:
        model: path of an ONNX file, or a proto, which is copied.
        role: what error messages call the model, for example "float model".

    Raises:
        TypeError: `model` is neither a path nor a proto.
        OSError: there is no such file, it is a directory, or it cannot be read.
        ModelError: the file is not ONNX, is cut short, or lacks its external data.
    """
    if isinstance(model, onnx.ModelProto):
        loaded, where = onnx.ModelProto(), f"the {role}"
        loaded.CopyFrom(model)
        if any(map(uses_external_data, loaded.graph.initializer)):
            raise ModelError(f"{where} keeps its weights in a file that is not loaded: pass its path instead")
    elif isinstance(model, (str, os.PathLike)):
        loaded, where = _read(Path(model), role), f"the {role} {os.fspath(model)!r}"
    else:
        raise TypeError(f"the {role} must be a path or an onnx.ModelProto, not {type(model).__name__}")
    if not loaded.opset_import or not loaded.graph.node:
        raise ModelError(f"{where} is not a complete ONNX model: it has no opset or no nodes")
    for tensor in loaded.graph.initializer:
        size = 4 * math.prod(tensor.dims)
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.raw_data) not in (0, size):
            raise ModelError(f"{where} is cut short: {tensor.name!r} has {len(tensor.raw_data)} of {size} bytes")
    for node in all_nodes(loaded.graph):  # onnxruntime (1.32) crashes on a LayerNormalization with bias ""
        while node.input and not node.input[-1]:
            node.input.pop()
    return loaded


def _read(path: Path, role: str) -> onnx.ModelProto:
    if not path.exists():
        raise FileNotFoundError(f"there is no {role} at {os.fspath(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"the {role} {os.fspath(path)!r} is a directory: pass the .onnx file in it")
    try:
        return onnx.load(path)
    except OSError:
        raise
    except Exception as error:  # onnx.load has no common error: protobuf's, the checker's, ValueError, ...
        raise ModelError(f"the {role} {os.fspath(path)!r} cannot be read as ONNX: {error}") from error
