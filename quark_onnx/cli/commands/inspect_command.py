"""`quark-onnx inspect`: what would be done to a model, before any time is spent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from quark.onnx.calibration_data.any_data import Data
from quark.onnx.cli.command import new_command, new_table, result_console, write_json
from quark.onnx.cli.configuration import algorithm_options, configuration, model_options, source_options
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.config.qconfig import QConfig
from quark.onnx.inspection import InspectedLayer, InspectedModel, inspect_model

__all__ = ["inspect_command", "show_inspection"]

_MOST_ROWS = 40


def inspect(ctx: click.Context) -> None:
    """Say what quantize would do to a model, before any time is spent.

    For MODEL and the options of quantize: layers and weights, what is quantized, tuned or left and why, time and
    memory. Data is not needed; with it, time and memory are for these samples.

    \b
      quark-onnx inspect model.onnx
      quark-onnx inspect model.onnx --preset XINT8_ADAROUND --json
    """
    config, _ = configuration(ctx)
    show_inspection(ctx, ctx.params["model"], config, given_data(ctx, ctx.params["model"]))


def show_inspection(ctx: click.Context, model: Path, config: QConfig, data: Data | None) -> None:
    """What would be done, on standard output."""
    found = inspect_model(model, config, data)
    if ctx.params["as_json"]:
        write_json(found.to_dict())
        return
    console = result_console()
    for line in _summary(model, found):
        console.print(Text(line))
    if found.layers:
        whole = ctx.params.get("full", False)
        console.print(_table(found, whole=whole))
        if not whole and len(found.layers) > _MOST_ROWS:
            console.print(Text(f"and {len(found.layers) - _MOST_ROWS} more layers: quark-onnx inspect --full"))
    for line in (*found.ignored, *found.notes):
        console.print(Text(f"note: {line}"))


def inspect_command() -> click.Command:
    """The command."""
    return new_command(
        "inspect",
        inspect,
        [
            click.Argument(["model"], type=click.Path(path_type=Path)),
            *data_options(),
            *source_options(saves=False),
            click.Option(["--full"], is_flag=True, help=f"Show every layer, not only the first {_MOST_ROWS}."),
            *algorithm_options(default="The default, unless --preset or --config is given."),
            *model_options(),
        ],
    )


def _summary(model: Path, found: InspectedModel) -> Iterator[str]:
    nodes = sum(found.operators.values())
    yield f"{model}: opset {found.opset}, {nodes} nodes, {found.weights:,} weights"
    yield f"inputs: {_listed(found.inputs)}; outputs: {_listed(found.outputs)}"
    yield f"operators: {_counted(found.operators)}"
    quantized = [layer for layer in found.layers if layer.format]
    tuned = [layer for layer in quantized if layer.tuned]
    layers = f"{len(quantized)} of {len(found.layers)} layers with weights"
    yield f"to be quantized: {layers}, {found.activations} activations"
    if found.in_float:
        yield f"to stay in float: {_counted(found.in_float)}"
    yield f"to be tuned: {len(tuned)} layers by {found.algorithm}" if found.algorithm else "to be tuned: nothing"
    yield (
        f"expected for {found.samples} samples: about {_seconds(found.estimate.seconds)} and "
        f"{found.estimate.memory_mib:.0f} MiB, measured on {found.measured_on}"
    )


def _listed(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {shown}" for name, shown in values.items())


def _counted(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _table(found: InspectedModel, *, whole: bool) -> Table:
    layers = found.layers if whole else found.layers[:_MOST_ROWS]
    sizes = ("weights", "inputs", "outputs", "positions")
    table = new_table("layer", "operator", *sizes, "becomes", "then", numbers=sizes)
    for layer in layers:
        numbers = (layer.weights, layer.inputs, layer.outputs, layer.positions)
        table.add_row(
            Text(layer.name),
            layer.op_type,
            *(str(n) if n else "" for n in numbers),
            _becomes(layer),
            Text(_then(layer)),
        )
    return table


def _becomes(layer: InspectedLayer) -> str:
    if not layer.format:
        return "as it is"
    return layer.format if layer.scales == 1 else f"{layer.format}, {layer.scales} scales"


def _then(layer: InspectedLayer) -> str:
    return "tuned" if layer.tuned else f"not tuned: {layer.reason}" if layer.reason else ""
