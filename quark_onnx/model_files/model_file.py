"""Models on disk, read with clear errors. How they are written: saved_model.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import onnx

from quark.onnx.errors import ModelError, ModelTypeError
from quark.onnx.graph.editor import all_nodes
from quark.onnx.model_files.external_data import load_external_data
from quark.onnx.model_files.model_gate import check_model
from quark.onnx.model_files.tensor_gate import check_room

__all__ = ["ModelLike", "load_model"]

ModelLike: TypeAlias = str | os.PathLike[str] | onnx.ModelProto


def load_model(model: ModelLike, *, role: str) -> onnx.ModelProto:
    """Read a model, external data included; the result is the caller's own to change.

    It names no missing inputs at the end of a node.

    Args:
        model: path of an ONNX file, or a proto, which is copied.
        role: what error messages call the model, for example "float model".

    Raises:
        ModelTypeError: `model` is neither a path nor a proto.
        OSError: there is no such file, it is a directory, or it cannot be read.
        ModelError: the file is not ONNX, is cut short, lacks its external data, or does not pass `check_model`.
    """
    if isinstance(model, onnx.ModelProto):
        loaded, where = onnx.ModelProto(), f"the {role}"
        loaded.CopyFrom(model)
    elif isinstance(model, (str, os.PathLike)):
        loaded, where = _read(Path(model), role), f"the {role} {os.fspath(model)!r}"
    else:
        raise ModelTypeError(f"the {role} must be a path or an onnx.ModelProto, not {type(model).__name__}")
    if not loaded.opset_import or not loaded.graph.node:
        raise ModelError(f"{where} is not a complete ONNX model: it has no opset or no nodes")
    try:
        check_model(loaded)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from error
    for node in all_nodes(loaded.graph):  # onnxruntime (1.32) crashes on a LayerNormalization with bias ""
        while node.input and not node.input[-1]:
            node.input.pop()
    return loaded


def _read(path: Path, role: str) -> onnx.ModelProto:
    where = f"the {role} {os.fspath(path)!r}"
    if not path.exists():
        raise FileNotFoundError(f"there is no {role} at {os.fspath(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"{where} is a directory: pass the .onnx file in it")
    if not path.is_file():  # opening a FIFO would wait for whoever writes to it
        raise ModelError(f"{where} is no regular file")
    try:
        check_room(path.stat().st_size, "it")
        model = onnx.load(path, load_external_data=False)
        load_external_data(model, path.parent)
    except OSError:
        raise
    except Exception as error:  # onnx.load has no common error: protobuf's, the checker's, ValueError, ...
        raise ModelError(f"{where} cannot be read as ONNX: {error}") from error
    return model
