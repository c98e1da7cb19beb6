"""Folders for files that are not finished; what a killed process leaves of them, the next one in that place removes.

Whoever has such a folder holds a lock on it (flock), which ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NO_MORE_FILES", "Lock", "scratch_folder", "try_lock"]

NO_MORE_FILES = (errno.EMFILE, errno.ENFILE)  # may be open at a time

_PREFIX = ".quark_onnx_"


class Lock:
    """A lock on a folder, held until it is closed."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def is_of(self, folder: Path) -> bool:
        """Whether that path is still the folder that is locked."""
        try:
            return os.path.samestat(os.fstat(self._handle), folder.stat())
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others have it."""
        os.close(self._handle)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def try_lock(folder: Path) -> Lock | None:
    """A folder's lock; None where somebody else has it.

    Raises:
        OSError: the folder is not there or cannot be read, or its file system knows no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return Lock(handle)


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A new folder in a place, which goes at the end with all that is in it. So do those left behind there.

    Raises:
        OSError: it cannot be made.
    """
    _remove_left_behind(place)
    with contextlib.ExitStack() as stack:
        folder = _made(place, stack)
        try:
            yield folder
        finally:
            stack.close()  # the lock: where few files may be open, removing needs it
            shutil.rmtree(folder, ignore_errors=True)


def _made(place: Path, stack: contextlib.ExitStack) -> Path:
    """A folder, and its lock on the stack, if the file system has locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        try:
            lock = try_lock(folder)
        except FileNotFoundError:
            continue  # before it was locked another process took it for one left behind
        except OSError as error:
            if error.errno in NO_MORE_FILES:  # then nothing can be written, nor a full folder removed
                folder.rmdir()
                raise
            return folder
        if lock is not None and stack.enter_context(lock).is_of(folder):
            return folder


def _remove_left_behind(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # without locks nobody can tell whose it is
            lock = try_lock(folder)
            if lock is not None:
                with lock:
                    shutil.rmtree(folder, ignore_errors=True)
