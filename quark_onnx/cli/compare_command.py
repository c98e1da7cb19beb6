"""`quark-onnx compare`: how far a quantized model is from its float model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from quark.onnx.cli.command import new_command, result_console, write_json
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.comparison import ComparedModels, ComparedOutput, compare_models
from quark.onnx.inference.sessions import Engine

__all__ = ["compare_command"]


def compare(ctx: click.Context) -> None:
    """Say how far a quantized model's outputs are from the float model's.

    FLOAT and QUANTIZED run on the same data, the latter once as ONNX defines it, and once with onnxruntime's default
    optimisation.

    \b
      quark-onnx compare model.onnx int8.onnx --data photos/ --preprocess imagenet
    """
    reference, model = ctx.params["float"], ctx.params["quantized"]
    data = given_data(ctx, reference)
    if data is None:
        raise click.UsageError("--data is needed: what both models are run on", ctx)
    engine = Engine(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    found = compare_models(reference, model, data, samples=ctx.params["samples"], engine=engine)
    if ctx.params["as_json"]:
        write_json(found.to_dict())
        return
    console = result_console()
    console.print(Text(_summary(found)))
    console.print(_outputs(found))
    for note in found.notes:
        console.print(Text(f"note: {note}"))


def compare_command() -> click.Command:
    """The command."""
    file = click.Path(path_type=Path)
    return new_command(
        "compare",
        compare,
        [
            click.Argument(["float"], type=file),
            click.Argument(["quantized"], type=file),
            *data_options(),
            click.Option(["--samples"], type=click.IntRange(min=1), help="Compare the first so many samples only."),
        ],
    )


def _summary(found: ComparedModels) -> str:
    worst = min((output.sqnr_db for output in found.outputs), default=None)
    parts = [f"{found.samples} samples"]
    if found.agreement is not None:
        parts.append(f"agreement {100 * found.agreement:.1f} %")
    if worst is not None:
        parts.append(f"SQNR {worst:.1f} dB" + (" at worst" if len(found.outputs) > 1 else ""))
    return ", ".join(parts)


def _outputs(found: ComparedModels) -> Table:
    table = Table()
    for name in ("output", "run", "SQNR dB", "cosine", "L2", "agreement"):
        table.add_column(name, justify="left" if name in ("output", "run") else "right")
    ways: Sequence[tuple[str, Sequence[ComparedOutput], float | None]] = (
        ("as defined", found.outputs, found.agreement),
        ("default optimisation", found.default_outputs, found.default_agreement),
    )
    for way, outputs, agreement in ways:
        for index, output in enumerate(outputs):
            of_first = agreement is not None and index == 0
            table.add_row(
                Text(output.name),
                way,
                f"{output.sqnr_db:.1f}",
                f"{output.cosine:.6f}",
                f"{output.l2:.4g}",
                f"{100 * agreement:.1f} %" if of_first and agreement is not None else "",
            )
    return table
