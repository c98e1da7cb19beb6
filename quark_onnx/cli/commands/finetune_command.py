"""`quark-onnx finetune`."""

from __future__ import annotations

from pathlib import Path

import click

from quark.onnx.cli.command import new_command
from quark.onnx.cli.configuration import algorithm_options, configuration, save_config, source_options
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.cli.reports import report_option, show_report
from quark.onnx.quantization.api import finetune as finetune_model

__all__ = ["finetune_command"]


def finetune(ctx: click.Context) -> None:
    """Finetune a quantized model that any tool made.

    QUANTIZED is a Q/DQ model that was made of the float model FLOAT. The result goes to OUT: with the same scales, zero
    points and structure, and other integer weights and biases.

    \b
      quark-onnx finetune model.onnx other_tools_int8.onnx tuned.onnx --data samples.npz
    """
    model, quantized, output = (ctx.params[name] for name in ("float", "quantized", "out"))
    config, written = configuration(ctx)
    data = given_data(ctx, model)
    if data is None:
        raise click.UsageError("--data is needed: what the model is finetuned with", ctx)
    report = finetune_model(model, quantized, output, data, config, save_dir=ctx.params["save_dir"])
    if ctx.params["save_config"] is not None:
        save_config(written, ctx.params["save_config"])
    show_report(ctx, report, output)


def finetune_command() -> click.Command:
    """The command."""
    file = click.Path(path_type=Path)
    return new_command(
        "finetune",
        finetune,
        [
            click.Argument(["float"], type=file),
            click.Argument(["quantized"], type=file),
            click.Argument(["out"], type=file),
            *data_options(),
            *source_options(),
            click.Option(
                ["--save-dir"], type=file, help="Keep what is done so far in this folder, to go on from there."
            ),
            report_option(),
            *algorithm_options(default="The default, unless --preset or --config is given."),
        ],
    )
