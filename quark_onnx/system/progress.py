"""Progress of long work: a live bar in a terminal or notebook, a line now and then anywhere else."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import time
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["PhaseProgress"]

_LOG = logging.getLogger("quark.onnx")
_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BETWEEN_FRAMES = 0.1
_SHOW_CURSOR = "\x1b[?25h"


class PhaseProgress:
    """Counts the steps of one phase. Use as a context manager.

    On a terminal, or in a notebook with ipywidgets, it draws a bar with the time left on standard error, which goes
    when the phase ends. Elsewhere, as when standard error is a file, it logs a line at INFO level every few seconds.

    Args:
        title: of the phase.
        total: steps; None where that is not known ahead.
    """

    def __init__(self, title: str, total: int | None) -> None:
        console = Console(stderr=True)
        self._title, self._total, self._done = title, total, 0
        self._started = self._last_line = self._last_drawn = time.monotonic()
        self._streams = sys.stdout, sys.stderr
        self._live: Progress | None = None
        self._task: TaskID | None = None
        # Where FORCE_COLOR is set, as in many CI systems, rich takes any file for a terminal.
        is_terminal = console.is_terminal and console.file.isatty()
        if is_terminal or (console.is_jupyter and find_spec("ipywidgets") is not None):
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            # What a data reader prints belongs above the bar, but into a file where standard output is one.
            together = sys.stdout is not None and sys.stdout.isatty()
            # A thread that refreshes it would outlive a Ctrl-C in the wrong moment.
            self._live = Progress(
                *columns, console=console, transient=True, redirect_stdout=together, auto_refresh=False
            )
            self._task = self._live.add_task(title, total=total)

    def __enter__(self) -> PhaseProgress:
        self._streams = sys.stdout, sys.stderr
        try:
            if self._live is not None:
                atexit.register(self._give_up)  # where Ctrl-C comes ahead of the first line of __exit__
                self._live.start()
        except BaseException:  # Ctrl-C: nobody will call __exit__
            self._give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._live is not None:
                self._live.stop()
        except BaseException:
            self._give_up()
            raise
        atexit.unregister(self._give_up)
        if error is None:
            _LOG.info("%s: %d done in %.1f s", self._title, self._done, time.monotonic() - self._started)

    def _give_up(self) -> None:
        """The terminal has its cursor again, and the process its streams, wherever the bar was interrupted."""
        if self._live is None:
            return
        atexit.unregister(self._give_up)
        with contextlib.suppress(Exception):  # of a bar that has started by half
            self._live.stop()
        sys.stdout, sys.stderr = self._streams
        console = self._live.console
        if console.is_terminal and not console.is_jupyter:
            console.file.write(_SHOW_CURSOR)  # by itself, as what the console has in hand may stay there
            console.file.flush()

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Steps done; note: what was done last."""
        self._done += steps
        now = time.monotonic()
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=steps, description=f"{self._title} {note}".strip())
            if now - self._last_drawn >= _SECONDS_BETWEEN_FRAMES:
                self._last_drawn = now
                self._live.refresh()
            return
        if now - self._last_line < _SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        if self._total:
            left = (now - self._started) / self._done * (self._total - self._done)
            _LOG.info("%s: %d of %d, about %.0f s left %s", self._title, self._done, self._total, left, note)
        else:
            _LOG.info("%s: %d %s", self._title, self._done, note)
