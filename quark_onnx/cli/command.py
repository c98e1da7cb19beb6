"""What all commands share: help in sections, options for output, one way to end."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from quark.onnx.cli.config_options import ConfigOption
from quark.onnx.cli.messages import messages_on_stderr

__all__ = ["SectionedCommand", "State", "new_command", "new_table", "result_console", "write_json"]

_OUTPUT = "Output"
_PIPED_WIDTH = 120


@dataclass
class State:
    """One call of the command line shares this state.

    Attributes:
        debug: an error shows where it comes from.
    """

    debug: bool = False


class SectionedCommand(click.Command):
    """A command whose help has sections, in the order of its options."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(section_of(param), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def section_of(param: click.Parameter) -> str:
    """The section of the help that an option belongs to."""
    if isinstance(param, ConfigOption):
        return param.section
    return _OUTPUT if param.name in ("as_json", "quiet", "verbose", "debug", "help") else "Options"


def new_command(
    name: str,
    run: Callable[[click.Context], None],
    params: Iterable[click.Parameter],
) -> click.Command:
    """A command: `run` gets the context, with the values of `params`; its docstring is the help."""

    def callback(**_: Any) -> None:
        ctx = click.get_current_context()
        ctx.find_object(State).debug = ctx.params["debug"]  # type: ignore[union-attr]
        with messages_on_stderr(quiet=ctx.params["quiet"], verbose=ctx.params["verbose"]):
            run(ctx)

    shared = [
        click.Option(["--json", "as_json"], is_flag=True, help="Print the result as JSON."),
        click.Option(["--quiet", "-q"], is_flag=True, help="Show no progress, only warnings and errors."),
        click.Option(["--verbose", "-v"], is_flag=True, help="Show what else is noted along the way."),
        click.Option(["--debug"], is_flag=True, help="Show where an error comes from."),
    ]
    return SectionedCommand(name, callback=callback, params=[*params, *shared], help=run.__doc__)


def write_json(result: dict[str, Any]) -> None:
    """The result for machines, on standard output."""
    click.echo(json.dumps(result, indent=1, allow_nan=False))


def result_console() -> Console:
    """The console for results on standard output: as wide as the terminal, in colour only there."""
    console = Console(file=sys.stdout, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    return console


def new_table(*columns: str, numbers: Collection[str] = ()) -> Table:
    """A table in ASCII, which any terminal and file can take.

    Args:
        numbers: the columns that hold some.
    """
    table = Table(box=box.MARKDOWN)
    for name in columns:
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold")
    return table
