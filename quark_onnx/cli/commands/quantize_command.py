"""`quark-onnx quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from quark.onnx.cli.command import new_command
from quark.onnx.cli.commands.inspect_command import show_inspection
from quark.onnx.cli.configuration import (
    algorithm_options,
    configuration,
    imported,
    model_options,
    save_config,
    source_options,
)
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.cli.reports import report_option, show_report
from quark.onnx.mixed_precision.target import Target
from quark.onnx.model_files.saved_model import check_output_path
from quark.onnx.quantization.api import ModelQuantizer

__all__ = ["quantize_command"]

_GOAL = "max_drop=0.01, sqnr_db=30, mse=0.1, min_score=0.9 or max_bytes=100000"


def quantize(ctx: click.Context) -> None:
    """Quantize a float model, and finetune it.

    The result for MODEL goes to OUT. Without other options activations become UInt8 and weights Int8, and AdaRound wins
    back what that loses. Of data, a hundred samples of what the model sees in use are enough for a start.

    \b
      quark-onnx quantize model.onnx int8.onnx --data photos/ --preprocess imagenet
      quark-onnx quantize model.onnx int8.onnx --data samples.npz --preset XINT8_ADAROUND
      quark-onnx quantize model.onnx mixed.onnx --data photos/ --preprocess imagenet --target max_drop=0.01
    """
    model, output = ctx.params["model"], ctx.params["out"]
    config, written = configuration(ctx)
    data = given_data(ctx, model)
    if data is None and not config.extra_options.get("UseRandomData", False):
        raise click.UsageError("--data is needed: what the model is calibrated with", ctx)
    if ctx.params["dry_run"]:
        check_output_path(output, model)
        show_inspection(ctx, model, config, data)
        return
    target = _target(ctx)
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(model, output, data, save_dir=ctx.params["save_dir"], target=target)
    if ctx.params["save_config"] is not None:
        save_config(written, ctx.params["save_config"])
    assert quantizer.report is not None
    show_report(ctx, quantizer.report, output)


def _target(ctx: click.Context) -> Target | None:
    """What the model is to keep; None where nothing is said.

    Raises:
        click.UsageError: an option needs --target.
        ConfigError: there is no such target.
    """
    given, score, limit = (ctx.params[name] for name in ("target", "score", "time_limit"))
    if given is None:
        if score is not None or limit is not None:
            raise click.UsageError(f"--{'score' if score is not None else 'time-limit'} needs --target", ctx)
        return None
    goal, _, number = given.partition("=")
    try:
        value = int(number) if goal == "max_bytes" else float(number)
    except ValueError:
        raise click.BadParameter(f"got {given!r}, expected {_GOAL}", ctx, param_hint="--target") from None
    written: dict[str, Any] = {goal: value, "evaluator": imported(score) if score is not None else None}
    return Target(time_limit=limit, **written)


def quantize_command() -> click.Command:
    """The command."""
    file = click.Path(path_type=Path)
    return new_command(
        "quantize",
        quantize,
        [
            click.Argument(["model"], type=file),
            click.Argument(["out"], type=file),
            *data_options(),
            *source_options(),
            click.Option(["--dry-run"], is_flag=True, help="Say what would be done, and write nothing."),
            click.Option(
                ["--save-dir"], type=file, help="Keep what is done so far in this folder, to go on from there."
            ),
            click.Option(
                ["--target"],
                metavar="GOAL=NUMBER",
                help=f"Look for the formats with the fewest bits that keep this: {_GOAL}.",
            ),
            click.Option(
                ["--score"],
                metavar="MODULE:FUNCTION",
                help="With --target: what max_drop and min_score are of. It takes an onnxruntime.InferenceSession.",
            ),
            click.Option(
                ["--time-limit"],
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                help="With --target: try nothing further from then on.",
            ),
            report_option(),
            *algorithm_options(default="The default, unless --preset or --config is given."),
            *model_options(),
        ],
    )
