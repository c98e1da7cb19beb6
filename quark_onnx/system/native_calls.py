"""Daemon threads leave native code before the interpreter ends.

Python ends a daemon thread when it asks for the GIL after the interpreter began to end. Up to Python 3.13 pthread_exit
does it, which unwinds the stack; where a destructor of onnxruntime's C++ is on it, the whole process aborts. So an exit
handler asks the native code that daemon threads are in to come back, and waits until it has. From then on these threads
enter no more of it: they get a SystemExit, which ends a thread without a word and cleans up on its way.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["leave_if_python_ends", "native_call"]

_LONGEST_WAIT = 2.0  # seconds


def leave_if_python_ends() -> None:
    """Gives a daemon thread a place to end.

    Raises:
        SystemExit: this is a daemon thread, and the main thread is past its end.
    """
    if _is_daemon() and not threading.main_thread().is_alive():
        raise SystemExit


def _is_daemon() -> bool:
    thread = threading.current_thread()
    return thread.daemon and thread is not threading.main_thread()  # a daemon thread that forks is the child's main one


class _NativeCalls:
    """The native calls that daemon threads of this process are in."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stops = list[Callable[[], object]]()

    @contextmanager
    def enter(self, stop: Callable[[], object]) -> Iterator[None]:
        with self._changed:
            self._stops.append(stop)
        try:
            leave_if_python_ends()  # only now: whoever comes later than `end` sees that Python ends
            yield
        except BaseException:
            leave_if_python_ends()  # it was stopped; how that is called does not matter
            raise
        finally:
            with self._changed:
                self._stops.remove(stop)
                self._changed.notify_all()

    def end(self) -> None:
        """Stop them all."""
        with self._changed:
            for stop in self._stops:
                stop()
            self._changed.wait_for(lambda: not self._stops, _LONGEST_WAIT)

    def forget(self) -> None:
        """In a child after fork(): only the thread that forked is there."""
        self.__init__()  # type: ignore[misc]


_calls = _NativeCalls()
atexit.register(_calls.end)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_calls.forget)


@contextmanager
def native_call(stop: Callable[[], object]) -> Iterator[None]:
    """Around native code that gives up the GIL and may be long or have C++ on its stack.

    Args:
        stop: makes the native code return early; called in another thread.

    Raises:
        SystemExit: as `leave_if_python_ends`.
    """
    if not _is_daemon():  # Python waits for the others
        yield
        return
    with _calls.enter(stop):
        yield
