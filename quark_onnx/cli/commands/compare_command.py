"""`quark-onnx compare`: how far a quantized model is from its float model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from quark.onnx.cli.command import new_command, new_table, result_console, write_json
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.comparison import ComparedModels, ComparedOutput, compare_models
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.report.views.short_text import decibel_text

__all__ = ["compare_command"]

_WORST = 10
_FIGURES = ("SQNR dB", "cosine", "L2")


def compare(ctx: click.Context) -> None:
    """Say how far a quantized model is from the float model.

    FLOAT and QUANTIZED run on the same data, the latter once as ONNX defines it, and once with onnxruntime's default
    optimisation. Their layers are compared too, which shows where the error comes from.

    \b
      quark-onnx compare model.onnx int8.onnx --data photos/ --preprocess imagenet
    """
    reference, model = ctx.params["float"], ctx.params["quantized"]
    data = given_data(ctx, reference)
    if data is None:
        raise click.UsageError("--data is needed: what both models are run on", ctx)
    found = compare_models(reference, model, data, samples=ctx.params["samples"])
    if ctx.params["as_json"]:
        write_json(found.to_dict())
        return
    console = result_console()
    console.print(Text(str(found)))
    console.print(_outputs(found))
    if found.layers:
        which = f"all {len(found.layers)} layers"
        if not ctx.params["full"] and len(found.layers) > _WORST:
            which = f"the {_WORST} of {len(found.layers)} layers that add the most error (all: --full)"
        console.print(Text(f"Where the error comes from, {which}: SQNR in dB; alone: were it alone quantized"))
        console.print(_layers(found.layers, whole=ctx.params["full"]))
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
            click.Option(["--full"], is_flag=True, help=f"Show every layer, not only the {_WORST} worst."),
        ],
    )


def _outputs(found: ComparedModels) -> Table:
    table = new_table("output", "run", *_FIGURES, "agreement", numbers=(*_FIGURES, "agreement"))
    ways: Sequence[tuple[str, Sequence[ComparedOutput], float | None]] = (
        ("as defined", found.outputs, found.agreement),
        ("default optimisation", found.default_outputs, found.default_agreement),
    )
    for way, outputs, agreement in ways:
        shown = "" if agreement is None else f"{100 * agreement:.1f} %"
        for output in outputs:
            figures = f"{output.sqnr_db:.1f}", f"{output.cosine:.6f}", f"{output.l2:.4g}"
            table.add_row(Text(output.name), way, *figures, shown)
            shown = ""  # it is the first output's
    return table


def _layers(layers: Sequence[LayerError], *, whole: bool) -> Table:
    """The layers that add the most error themselves first, or all in the order of the model."""
    by_error = sorted(layers, key=lambda layer: -layer.own if math.isfinite(layer.own) else 0.0)
    columns = ("its input", "alone", "its output")
    table = new_table("layer", "operator", *columns, numbers=columns)
    for layer in layers if whole else by_error[:_WORST]:
        figures = map(decibel_text, (layer.input_db, layer.own_db, layer.output_db))
        table.add_row(Text(layer.name), layer.op_type, *figures)
    return table
