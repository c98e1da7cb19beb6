"""A folder of records, each whole or not there: written under another name, synced, renamed; a checksum inside."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quark.onnx.errors import ConfigError
from quark.onnx.system.scratch_folder import Lock, try_lock

__all__ = ["Record", "Records"]

_LOG = logging.getLogger(__name__)
_PREFIX, _SUFFIX, _UNFINISHED = "quark_onnx.", ".record", ".part"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Record:
    """What is kept together.

    Attributes:
        fields: what JSON takes, NaN and Inf too.
        arrays: of NumPy's own types.
    """

    fields: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Records:
    """The records of a folder, for one process at a time. Other files there are left alone.

    Args:
        folder: made if it is not there.

    Raises:
        OSError: it cannot be made or read.
        ConfigError: another process has it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock: Lock | None = None
        try:
            self._lock = try_lock(folder.resolve())
        except OSError as error:
            _LOG.debug("%s cannot be locked: %s", folder, error)  # its file system knows no locks
        else:
            if self._lock is None:
                raise ConfigError(f"save_dir {str(folder)!r} is used by another process: wait, or give another one")
        for path in self._paths(_UNFINISHED):
            path.unlink(missing_ok=True)

    def put(self, name: str, record: Record) -> None:
        """Keep a record in place of the one of that name. Several threads may, each with its own names.

        Raises:
            OSError: it cannot be written.
        """
        content = _packed(record)
        path = self._path(name)
        part = path.with_name(path.name + _UNFINISHED)
        try:
            with part.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise OSError(error.errno, f"save_dir {str(self.folder)!r} cannot be written: {error.strerror}") from error

    def get(self, name: str) -> Record | None:
        """A record; None where there is none, or it is damaged: then it is as if it had not been written.

        Raises:
            OSError: it cannot be read.
        """
        try:
            content = self._path(name).read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
            _LOG.warning("%s is damaged and left out", self._path(name))
            return None
        return _unpacked(content[_DIGEST:])

    def names(self) -> list[str]:
        """The names of all records, damaged ones too."""
        return sorted(path.name[len(_PREFIX) : -len(_SUFFIX)] for path in self._paths(_SUFFIX))

    def clear(self, *, last: str) -> None:
        """Remove all records, and the one that tells what the others are of when these are gone.

        Raises:
            OSError: one cannot be removed.
        """
        telling = self._path(last)
        for path in (*(path for path in self._paths(_SUFFIX) if path != telling), telling):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let other processes have the folder."""
        if self._lock is not None:
            self._lock.close()

    def _path(self, name: str) -> Path:
        return self.folder / f"{_PREFIX}{name}{_SUFFIX}"

    def _paths(self, end: str) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name.startswith(_PREFIX) and path.name.endswith(end)]


def _packed(record: Record) -> bytes:
    content = io.BytesIO()
    fields = np.frombuffer(json.dumps(record.fields).encode(), np.uint8)
    np.savez(content, allow_pickle=False, _fields=fields, **record.arrays)
    return content.getvalue()


def _unpacked(content: bytes) -> Record:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        fields = json.loads(arrays["_fields"].tobytes())
        return Record(fields, {name: arrays[name] for name in arrays.files if name != "_fields"})
