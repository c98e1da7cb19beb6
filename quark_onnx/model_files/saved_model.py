"""Where a result goes: checked before any work, and written so that a path holds all of it or what was there before.

One rename, of the model's file, puts the new model in place of the old. External data has a file of its own for each
content, named by its digest, so that old and new lie side by side until then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from quark.onnx.inference.large_models import copy_fields, is_large
from quark.onnx.model_files.model_file import ModelLike
from quark.onnx.system.scratch_folder import NO_MORE_FILES, Lock, scratch_folder, try_lock

__all__ = ["check_output_path", "save_model"]

_SMALL = 1024  # bytes of a tensor that stays in the model
_ALIGNMENT = 64  # bytes, of a tensor in the data
_DIGITS = 16  # of the digest, in the name of a data file
_LONGEST_WAIT = 60.0  # seconds, for another process that puts a model into the same folder
_LARGEST_MODEL = 1 << 31  # bytes of a protobuf


def check_output_path(path: str | os.PathLike[str], *inputs: ModelLike | None) -> None:
    """Refuse, before any work is done, a path that a model cannot be saved to.

    Args:
        path: where the result will go. An existing file is fine: it is replaced.
        inputs: the models that are read, which must not be overwritten; protos and None are ignored.

    Raises:
        OSError: FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError; FileExistsError where `path`
            is a device, a FIFO or a socket; shutil.SameFileError where it is one of the inputs or the external data of
            one; or the system's own for a name that is too long, or links that lead to each other.
    """
    shown = repr(os.fspath(path))
    target = _target(path)
    if not target.parent.exists():
        raise FileNotFoundError(f"the output path {shown} lies in a directory that does not exist: create it first")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"the output path {shown} lies below a file, not a directory")
    for source in inputs:
        if isinstance(source, (str, os.PathLike)) and _overwrites(target, Path(source)):
            raise shutil.SameFileError(f"the output path {shown} would overwrite the input model {os.fspath(source)!r}")
    try:
        with scratch_folder(target.parent) as scratch:
            (scratch / target.name).touch()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise OSError(error.errno, f"the output path {shown} cannot be written: {error.strerror}") from error
        raise PermissionError(f"the output path {shown} cannot be written: {error.strerror}") from error


def _target(path: str | os.PathLike[str]) -> Path:
    """The file itself, where `path` is a link to it.

    Raises:
        OSError: it is there and no regular file, or links lead to each other.
    """
    shown = repr(os.fspath(path))
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return Path(os.path.realpath(path))
    except OSError as error:
        raise OSError(error.errno, f"the output path {shown} cannot be written: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"the output path {shown} is a directory: add a file name")
    if not stat.S_ISREG(mode):
        raise FileExistsError(f"the output path {shown} is a device, a FIFO or a socket: give the path of a file")
    return Path(os.path.realpath(path))


def _overwrites(target: Path, source: Path) -> bool:
    """Whether saving to `target` would replace the file of `source` or its external data."""
    if not target.exists() or not source.is_file():
        return False  # load_model says what is wrong with it
    return target.samefile(source) or (target.parent.samefile(source.parent) and target.name in _data_files(source))


def _data_files(source: Path) -> set[str]:
    """The files of a model's external data, by name; none where it is no model, which load_model says."""
    try:
        model = onnx.load(source, load_external_data=False)
    except Exception:  # onnx.load has no common error: protobuf's, OSError, ValueError, ...
        return set()
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return {Path(entry.value).name for entry in entries if entry.key == "location"}


def save_model(model: onnx.ModelProto, path: str | os.PathLike[str], *, external_data: bool = False) -> None:
    """Write a model so that `path` holds either all of it or what was there before, and can be loaded, at any moment.

    A file that is replaced keeps its mode and, as far as the system lets us, its owner. What a save that was killed has
    left beside `path`, and the data file of the model that was replaced, go, unless another file of that folder names
    it.

    Args:
        model: not changed.
        path: the file to create or replace; its directory must exist.
        external_data: put the tensors into a file `<path>.<digest>.data`, read by onnxruntime from beside
            `path`. Done in any case where protobuf's limit of 2 GB asks for it.

    Raises:
        OSError: the files cannot be written.
    """
    target = _target(path)
    with scratch_folder(target.parent) as scratch:
        part, data = scratch / "model", scratch / "data"
        name = ""
        if external_data or is_large(model):
            model, digest = _with_data_apart(model, data)
            name = f"{_stem(target)}.{digest[:_DIGITS]}.data"
            for tensor in _apart(model):
                tensor.external_data.add(key="location", value=name)
        part.write_bytes(model.SerializeToString())
        written = [part, data] if name and data.exists() else [part]
        for file in written:
            _take_over_rights(target, file)
            _sync(file)
        with _opened(target.parent) as sync_names, _others_kept_out(target.parent) as lock:
            try:
                if data in written:
                    os.replace(data, target.with_name(name))
                    sync_names()
                os.replace(part, target)
                sync_names()
            finally:
                if lock is not None:
                    _remove_unused_data(target)


def _with_data_apart(model: onnx.ModelProto, data: Path) -> tuple[onnx.ModelProto, str]:
    """A model whose larger tensors say where in `data` they are, though not yet its name; and the digest of `data`."""
    shell, digest, end = onnx.ModelProto(), hashlib.sha256(), 0
    copy_fields(shell, model, but="graph")
    copy_fields(shell.graph, model.graph, but="initializer")
    with contextlib.ExitStack() as stack:
        file = None
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            if size < _SMALL:
                shell.graph.initializer.append(tensor)
                continue
            file = file or stack.enter_context(data.open("xb"))
            for part in (bytes(-end % _ALIGNMENT), tensor.raw_data):
                start, end = end, end + file.write(part)
                digest.update(part)
            apart = shell.graph.initializer.add()
            copy_fields(apart, tensor, but="raw_data")
            apart.data_location = onnx.TensorProto.EXTERNAL
            apart.external_data.add(key="offset", value=str(start))
            apart.external_data.add(key="length", value=str(size))
    return shell, digest.hexdigest()


def _apart(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    return (t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)


def _stem(target: Path) -> str:
    """What the names of its data files begin with, which the file system and protobuf must take."""
    room = os.pathconf(target.parent, "PC_NAME_MAX") - _DIGITS - len("..data")
    return target.name.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")


def _take_over_rights(target: Path, file: Path) -> None:
    """Mode and owner of what it replaces, if there is something."""
    with contextlib.suppress(FileNotFoundError):
        there = target.stat()
        with contextlib.suppress(PermissionError):
            os.chown(file, there.st_uid, there.st_gid)
        file.chmod(stat.S_IMODE(there.st_mode))


def _sync(file: Path) -> None:
    """Wait until its content is on the disk."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[Callable[[], None]]:
    """What waits until a folder's names are on the disk, for which it opens nothing any more."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # it may be written and not read
        yield lambda: None
        return

    def sync() -> None:
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL:  # this file system cannot do that
                raise

    try:
        yield sync
    finally:
        os.close(handle)


@contextlib.contextmanager
def _others_kept_out(folder: Path) -> Iterator[Lock | None]:
    """The folder's lock: no two processes put models in place and remove data at the same time. None where the file
    system has no locks, or a process that was stopped holds it.
    """
    lock, end = None, time.monotonic() + _LONGEST_WAIT
    try:
        while (lock := try_lock(folder)) is None and time.monotonic() < end:
            time.sleep(0.01)
    except OSError as error:
        if error.errno in NO_MORE_FILES:
            raise
    with lock or contextlib.nullcontext():
        yield lock


def _remove_unused_data(target: Path) -> None:
    """Data files that only we name so, and that no model of the folder reads."""
    named = re.compile(re.escape(_stem(target)) + rf"\.[0-9a-f]{{{_DIGITS}}}\.data")
    files = list(target.parent.iterdir())
    for data in (file for file in files if named.fullmatch(file.name)):
        if not any(_mentions(file, data.name) for file in (target, *files) if not named.fullmatch(file.name)):
            data.unlink(missing_ok=True)


def _mentions(file: Path, name: str) -> bool:
    """Whether a model names a file as its data; yes where it cannot be read."""
    try:
        state = file.stat()
        if not stat.S_ISREG(state.st_mode) or not 0 < state.st_size < _LARGEST_MODEL:
            return False
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(name.encode("utf-8", "replace")) >= 0
    except FileNotFoundError:
        return False
    except (OSError, ValueError):  # mmap's own, of a file that has just become empty
        return True
