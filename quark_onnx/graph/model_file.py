"""Models on disk: read with clear errors, check where the result goes, write all or nothing."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TypeAlias

import onnx
from onnx.external_data_helper import uses_external_data

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import all_nodes
from quark.onnx.large_models import is_large

__all__ = ["ModelLike", "check_output_path", "load_model", "save_model"]

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


def check_output_path(path: str | os.PathLike[str], *inputs: ModelLike | None) -> None:
    """Refuse, before any work is done, a path that a model cannot be saved to.

    Args:
        path: where the result will go. An existing file is fine: it is replaced.
        inputs: the models that are read, which must not be overwritten; protos and None are ignored.

    Raises:
        OSError: FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, or
            shutil.SameFileError where `path` is one of the inputs or the external data of one.
    """
    target, shown = Path(os.path.realpath(path)), repr(os.fspath(path))
    if target.is_dir():
        raise IsADirectoryError(f"the output path {shown} is a directory: add a file name")
    if not target.parent.exists():
        raise FileNotFoundError(f"the output path {shown} lies in a directory that does not exist: create it first")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"the output path {shown} lies below a file, not a directory")
    for source in inputs:
        if isinstance(source, (str, os.PathLike)) and _overwrites(target, Path(source)):
            raise shutil.SameFileError(f"the output path {shown} would overwrite the input model {os.fspath(source)!r}")
    try:
        os.rmdir(tempfile.mkdtemp(dir=target.parent))
    except OSError as error:
        raise PermissionError(f"the output path {shown} cannot be written: {error.strerror}") from error


def _overwrites(target: Path, source: Path) -> bool:
    """Whether saving to `target` would touch the file of `source` or its external data."""
    if not source.is_file():
        return False  # load_model says what is wrong with it
    if target.exists() and target.samefile(source):
        return True
    data = _data_path(target)  # a model names its external data verbatim, as a path relative to itself
    return data.exists() and data.parent.samefile(source.parent) and data.name.encode() in source.read_bytes()


def _data_path(path: Path) -> Path:
    return path.with_name(path.name + ".data")


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str], *, external_data: bool = False) -> None:
    """Write a model so that `path` holds either all of it or what was there before.

    The files are written in a scratch directory beside `path`, which is removed whatever happens,
    and then moved into place.

    Args:
        model: not changed.
        path: the file to create or replace; its directory must exist.
        external_data: put the tensors into one file `<path>.data`, read by onnxruntime from beside
            `path`. Done in any case where protobuf's limit of 2 GB asks for it.

    Raises:
        OSError: the files cannot be written.
    """
    target = Path(os.path.realpath(path))
    data = _data_path(target)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        part = Path(scratch, target.name)
        if not external_data and not is_large(model):
            part.write_bytes(model.SerializeToString())
            os.replace(part, target)
            return
        shell = onnx.ModelProto()
        shell.CopyFrom(model)  # onnx.save_model moves the tensors out of what it is given
        onnx.save_model(shell, part, save_as_external_data=True, location=data.name)
        try:
            if part.with_name(data.name).exists():  # not where every tensor is small enough to stay inside
                os.replace(part.with_name(data.name), data)
            os.replace(part, target)
        except BaseException:
            data.unlink(missing_ok=True)
            raise
