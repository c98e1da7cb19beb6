"""What is said while a command runs, on standard error: progress, warnings, errors, each in a line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import click

__all__ = ["error_line", "messages_on_stderr"]

_LOGGER = "quark.onnx"


class _Lines(logging.Handler):
    """Writes records to standard error as it is at the time; of equal ones the first."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if record.levelno >= logging.WARNING:
            if line in self._said:
                return
            self._said.add(line)
            click.echo(f"{click.style('warning:', fg='yellow')} {line}", err=True)
        else:
            click.echo(line, err=True)


@contextmanager
def messages_on_stderr(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Shows what the package logs: warnings, and unless `quiet` the progress of phases; with `verbose` all the rest."""
    logger = logging.getLogger(_LOGGER)
    handler = _Lines(logging.WARNING if quiet else logging.INFO)
    handler.addFilter(lambda record: verbose or record.levelno >= logging.WARNING or record.name == _LOGGER)
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates


def error_line(message: str) -> None:
    """An error in a line."""
    click.echo(f"{click.style('error:', fg='red')} {' '.join(message.split())}", err=True)
