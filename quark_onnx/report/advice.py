"""What to do next, spelled for Python or for the command line: whoever reads it can write it down as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from quark.onnx.report.weak_layers import Cause, WeakLayer

if TYPE_CHECKING:
    from quark.onnx.report.report import Report

__all__ = ["FINE", "Interface", "advice"]

Interface = Literal["python", "command line"]
Names = Sequence[str]  # of nodes

FINE = 30.0  # dB of a layer alone: whatever ails the model, it is not this one
_FEW = 32  # samples to calibrate with


class _Remedy(NamedTuple):
    """What helps, and how each interface writes it for some nodes."""

    what: str
    python: Callable[[Names], str]
    command: Callable[[Names], str]

    def told(self, interface: Interface, names: Names = ()) -> str:
        return f"{self.what}: {(self.python if interface == 'python' else self.command)(names)}"


def _always(text: str) -> Callable[[Names], str]:
    return lambda _: text


def _excluded(names: Names) -> str:
    return " ".join(f"--exclude {shlex.quote(name)}" for name in names)


def _eight_bits(names: Names) -> str:
    written = f"specific_layer_config=[[{{weight: {{name: Int8Spec}}}}, {_quoted(names)}]]"
    return f"--set {shlex.quote(written)}"


def _quoted(names: Names) -> str:
    return "[" + ", ".join('"' + name.replace("\\", r"\\").replace('"', r"\"") + '"' for name in names) + "]"


_FINETUNE = _Remedy("finetune", _always("algo_config=[AdaRoundConfig()]"), _always("--adaround"))
_PLAIN = _Remedy(
    "leave finetuning out, as it gains nothing here", _always("algo_config=[]"), _always("--no-finetuning")
)
_MORE_BITS = _Remedy(
    "give activations 16 bits, or leave the weakest layers in float",
    lambda names: f"Int16Spec or UInt16Spec; exclude={list(names)}",
    lambda names: f"--activation UInt16; {_excluded(names)}",
)
_REMEDIES: dict[Cause, _Remedy] = {
    "weight scale": _Remedy(
        "give each output channel its weight scale",
        _always("weight=Int8Spec(quant_granularity=QuantGranularity.Channel)"),
        _always("--weight-quant-granularity Channel"),
    ),
    "weight bits": _Remedy(
        "give the weakest layers 8-bit weights",
        lambda names: f"specific_layer_config={{QLayerConfig(weight=Int8Spec()): {list(names)}}}",
        _eight_bits,
    ),
    "weights": _Remedy("leave the weakest layers in float", lambda names: f"exclude={list(names)}", _excluded),
    "range": _Remedy(
        "let activations keep their whole range",
        _always("calibration_method=CalibMethod.MinMax"),
        _always("--activation-calibration-method MinMax"),
    ),
    "outliers": _MORE_BITS,
    "input": _MORE_BITS,
}


def advice(report: Report, grade: str, weakest: Sequence[WeakLayer]) -> Iterator[str]:
    """What to try next, the most promising first."""
    interface = report.interface
    if grade in ("fair", "poor"):
        if report.algorithm is None:
            yield _FINETUNE.told(interface)
        yield from _of_layers([one for one in weakest if one.own_db < FINE] or list(weakest), interface)
    if report.algorithm is not None and report.end_to_end is not None and report.end_to_end.is_worse:
        yield _PLAIN.told(interface)
    if report.samples < _FEW:
        yield f"calibrate with 100 samples or more: {report.samples} say little of ranges, and less of the agreement"
    if grade == "good":
        yield "measure it with your own metric before you ship it"
    elif grade == "unknown":
        yield "run it on the hardware that it is meant for, and compare there"


def _of_layers(poor: Sequence[WeakLayer], interface: Interface) -> Iterator[str]:
    """A remedy for each cause, with the layers that have it."""
    for cause in dict.fromkeys(layer.cause for layer in poor):
        if cause in _REMEDIES:
            yield _REMEDIES[cause].told(interface, [one.name for one in poor if one.cause == cause])
