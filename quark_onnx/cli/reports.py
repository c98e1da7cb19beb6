"""How the report of a run is shown and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from quark.onnx.report.report import Report

__all__ = ["report_option", "show_report"]


def report_option() -> click.Option:
    """Where the report goes, besides standard output."""
    return click.Option(
        ["--report"],
        type=click.Path(dir_okay=False, path_type=Path),
        callback=_known_suffix,
        metavar="FILE.html|FILE.json",
        help="Write the report to this file too, as a page or as JSON.",
    )


def _known_suffix(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix not in (".html", ".json"):
        raise click.BadParameter(f"got {str(value)!r}, expected a name that ends in .html or .json", ctx, param)
    return value


def show_report(ctx: click.Context, report: Report, output: Path) -> None:
    """The report of what was written to `output`. Its warnings stand on standard error already."""
    report = replace(report, interface="command line")
    path: Path | None = ctx.params["report"]
    if path is not None and path.suffix == ".html":
        report.to_html(path)
    elif path is not None:
        report.to_json(path)
    if ctx.params["as_json"]:
        click.echo(report.to_json())
        return
    click.echo(str(replace(report, warnings=(), ignored=())).rstrip())
    click.echo(f"written: {output} ({output.stat().st_size / 1e3:.0f} kB)")
