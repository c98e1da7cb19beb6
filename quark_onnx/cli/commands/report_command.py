"""`quark-onnx report`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from quark.onnx.cli.command import new_command
from quark.onnx.report.report import Report

__all__ = ["report_command"]


def report(ctx: click.Context) -> None:
    """Show the report of a run.

    RUN is what --json printed, or --report FILE.json wrote.

    \b
      quark-onnx quantize model.onnx int8.onnx --data photos/ --report run.json
      quark-onnx report run.json --html run.html
    """
    kept = replace(Report.load(ctx.params["run"]), interface="command line")
    html: Path | None = ctx.params["html"]
    if html is not None:
        kept.to_html(html)
    if ctx.params["as_json"]:
        click.echo(kept.to_json())
    elif html is None:
        click.echo((kept.full() if ctx.params["full"] else str(kept)).rstrip())
    else:
        click.echo(f"written: {html}")


def report_command() -> click.Command:
    """The command."""
    file = click.Path(path_type=Path, dir_okay=False)
    return new_command(
        "report",
        report,
        [
            click.Argument(["run"], type=file),
            click.Option(["--html"], type=file, metavar="OUT", help="Write a page with pictures to this file."),
            click.Option(["--full"], is_flag=True, help="Show all tables."),
        ],
    )
