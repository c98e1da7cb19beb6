"""The program: its commands, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

import click

from quark.onnx.cli.command import State
from quark.onnx.cli.commands.compare_command import compare_command
from quark.onnx.cli.commands.completion_command import completion_command
from quark.onnx.cli.commands.doctor_command import doctor_command
from quark.onnx.cli.commands.finetune_command import finetune_command
from quark.onnx.cli.commands.inspect_command import inspect_command
from quark.onnx.cli.commands.quantize_command import quantize_command
from quark.onnx.cli.commands.report_command import report_command
from quark.onnx.cli.messages import error_line
from quark.onnx.errors import QuarkError

__all__ = ["main", "program"]

_NAME = "quark-onnx"
_INTERRUPTED = 128 + signal.SIGINT


def program() -> click.Group:
    """The command with its subcommands."""
    group = click.Group(
        _NAME,
        help="Quantize ONNX models, finetune what was quantized, and see what it did.\n\n"
        "Results go to standard output, progress and warnings to standard error. The exit code is 0, 1 after an error, "
        "2 where the command is not understood.",
        commands=[
            quantize_command(),
            finetune_command(),
            inspect_command(),
            compare_command(),
            doctor_command(),
            report_command(),
            completion_command(),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    return click.version_option(version("quark-onnx"), prog_name=_NAME)(group)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the exit code.

    Args:
        arguments: those of the process, if not given.
    """
    state = State()
    before = signal.signal(signal.SIGTERM, _end)  # so that what is unfinished is removed
    try:
        program().main(arguments, _NAME, standalone_mode=False, obj=state)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        error_line("interrupted: nothing was written")
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would fail too
        return 1
    except Exception as error:  # of the package, the system, or the caller's reader
        if state.debug:
            traceback.print_exc()
        else:
            error_line(_told(error))
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(128 + number)


def _told(error: Exception) -> str:
    if isinstance(error, QuarkError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"
