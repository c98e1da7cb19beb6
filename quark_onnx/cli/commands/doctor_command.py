"""`quark-onnx doctor`: what a quantized model suffers from, and what would help."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
from rich.table import Table
from rich.text import Text

from quark.onnx.cli.command import new_command, new_table, result_console, write_json
from quark.onnx.cli.data_options import data_options, given_data
from quark.onnx.diagnosis import CuredModel, Diagnosis, Finding, analyse, cure
from quark.onnx.measures.layer_error import decibels
from quark.onnx.report.views.short_text import decibel_text

__all__ = ["doctor_command"]

_SHOWN = 10
_FIGURES = ("values", "alone dB", "16 bits dB", "per channel dB", "float dB")


def doctor(ctx: click.Context) -> None:
    """Say what a quantized model suffers from, and what would help.

    Each quantizer of QUANTIZED is put into FLOAT by itself, and the harm that it does is measured at the outputs. For
    the worst ones it is measured what the whole model gains with 16 bits, one scale per channel, or floats instead.
    Errors are in dB below the variance of the outputs: more is better.

    With --cure the cures that help are written into a copy of QUANTIZED, and judged on the samples that follow. If that
    is no better nothing is written, and the exit code is 1.

    \b
      quark-onnx doctor model.onnx int8.onnx --data photos/ --preprocess imagenet
      quark-onnx doctor model.onnx int8.onnx --data photos/ --preprocess imagenet --cure better.onnx
    """
    reference, model = ctx.params["float"], ctx.params["quantized"]
    data = given_data(ctx, reference)
    if data is None:
        raise click.UsageError("--data is needed: what both models are run on", ctx)
    limits = {name: ctx.params[name] for name in ("samples", "cured")}
    output = ctx.params["output"]
    result = cure(reference, model, output, data, **limits) if output is not None else None
    assert not isinstance(result, tuple)  # it has an output
    found = result.diagnosis if result is not None else analyse(reference, model, data, **limits)
    if ctx.params["as_json"]:
        write_json((result or found).to_dict())
    else:
        _show(found, result)
    if result is not None and result.refused:
        raise click.ClickException(f"nothing was written to {str(output)!r}: {result.refused}")


def _show(found: Diagnosis, result: CuredModel | None) -> None:
    console = result_console()
    console.print(Text(_summary(found)))
    console.print(_table(found))
    for line in _reasons(found):
        console.print(Text(line))
    console.print(Text(_advice(found)))
    for note in found.notes:
        console.print(Text(f"note: {note}"))
    if result is not None and not result.refused:
        console.print(Text(_written(result)))


def doctor_command() -> click.Command:
    """The command."""
    file = click.Path(path_type=Path)
    count = click.IntRange(min=1)
    return new_command(
        "doctor",
        doctor,
        [
            click.Argument(["float"], type=file),
            click.Argument(["quantized"], type=file),
            *data_options(),
            click.Option(
                ["--samples"], type=count, default=16, show_default=True, help="Run the first so many samples."
            ),
            click.Option(
                ["--cure", "output"],
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="OUT",
                help="Write the quantized model with the cures that help to this file.",
            ),
            click.Option(
                ["--cured"],
                type=count,
                default=20,
                show_default=True,
                help="Try cures of the so many worst quantizers.",
            ),
        ],
    )


def _summary(found: Diagnosis) -> str:
    errors = (found.error, found.activations, found.weights)
    whole, activations, weights = (decibel_text(decibels(error)) for error in errors)
    return (
        f"{found.samples} samples: the quantized model is at {whole} dB; were activations alone quantized at "
        f"{activations} dB, weights alone at {weights} dB"
    )


def _table(found: Diagnosis) -> Table:
    table = new_table("quantizer", "of", *_FIGURES, numbers=_FIGURES)
    for finding in found.findings[:_SHOWN]:
        cured = {cure.name: decibel_text(decibels(max(0.0, found.error - cure.measured))) for cure in finding.cures}
        table.add_row(
            Text(finding.name),
            finding.kind,
            f"{100 * finding.share:.1f} %",
            decibel_text(decibels(finding.alone)),
            *(cured.get(name, "") for name in ("16 bits", "per channel", "float")),
        )
    return table


def _reasons(found: Diagnosis) -> Iterator[str]:
    """What may be behind the worst ones."""
    for finding in found.findings[:_SHOWN]:
        for fact in finding.facts:
            yield f"{finding.name}: {fact}"


def _advice(found: Diagnosis) -> str:
    if not found.cures:
        return "No cure of single quantizers helps much: more bits or samples, another range method, or finetuning may"
    kinds = {finding.name: finding for finding in found.findings}
    listed = ", ".join(f"{cure} for {_called(kinds[name])}" for name, cure in found.cures)
    return f"With these cures at once the model would be at {decibel_text(decibels(found.cured))} dB: {listed}"


def _written(result: CuredModel) -> str:
    errors = (result.before, result.after, result.before_default, result.after_default)
    before, after, *defaults = (decibel_text(decibels(error)) for error in errors)
    which = "other samples" if result.held_out else "the same samples, as there are no others"
    return (
        f"The cured model is written. On {result.samples} {which}: {before} -> {after} dB, as onnxruntime runs it by "
        f"default {defaults[0]} -> {defaults[1]} dB. Of the activations {100 * result.float_share:.1f} % are in float "
        f"now, {100 * result.wide_share:.1f} % have 16 bits now; constants take {result.bytes_before} -> "
        f"{result.bytes_after} bytes"
    )


def _called(finding: Finding) -> str:
    return f"{finding.name!r}" if finding.kind == "activation" else f"the weights of {finding.name!r}"
