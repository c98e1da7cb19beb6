"""A worse model is never the result: where tuned layers make the whole model worse, the last ones are taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.graph.editor import constant_tensors
from quark.onnx.measures.chance import standard_errors
from quark.onnx.plan.reasons import Reason
from quark.onnx.report.layer_report import LayerReport

__all__ = ["Change", "Kept", "is_worse", "keep_better", "without"]

_LOG = logging.getLogger(__name__)
_CERTAIN = 1.1  # standard errors of the difference: a single sample, however bad, makes one
_STATES = 8  # of the model that are tried in between, about evenly spread over its layers


@dataclass(frozen=True, eq=False)
class Change:
    """What tuning did to a layer, or to all that share a weight.

    Attributes:
        layers: their names.
        before: the initializers as they were, by name.
    """

    layers: tuple[str, ...]
    before: Mapping[str, onnx.TensorProto]


@dataclass(frozen=True)
class Kept:
    """What came of the changes.

    Attributes:
        taken_back: layers, in the order in which they were changed.
        warnings: what happened, logged; none where all is kept.
        why: for the report of a layer that was taken back.
    """

    taken_back: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    why: str = ""


def is_worse(after: NDArray[np.float64], before: NDArray[np.float64]) -> bool:
    """Whether the errors of one state of a model, by sample, are worse than another's by more than chance."""
    return standard_errors(after, before) > _CERTAIN


def keep_better(
    quantized: onnx.ModelProto,
    changes: Sequence[Change],
    errors: Callable[[], NDArray[np.float64]],
    before: NDArray[np.float64],
    *,
    done: str,
) -> Kept:
    """Keep the last state of a model that was changed layer by layer, unless it is worse than the first by more than
    the chance of the samples; then the best of some states in between.

    Args:
        quantized: the model after all changes; the integers of some become the old ones.
        changes: in their order.
        errors: of the whole model as it is now, by sample.
        before: its errors before the first change.
        done: what made the changes: "finetuning".
    """
    after = errors()
    if not is_worse(after, before):
        return Kept()
    initializers = constant_tensors(quantized.graph)
    new = [{name: _copy(initializers[name]) for name in change.before} for change in changes]
    count = len(changes)
    tried = {0: float(before.mean())}
    present = count
    for kept in sorted({round(i * count / _STATES) for i in range(1, _STATES)} - {0, count}, reverse=True):
        for change in reversed(changes[kept:present]):
            _put(change.before, initializers)
        present = kept
        tried[kept] = float(errors().mean())
    best = min(tried, key=lambda kept: (tried[kept], -kept))
    for change in reversed(changes[:present]):
        _put(change.before, initializers)
    for tensors in new[:best]:
        _put(tensors, initializers)
    back = tuple(name for change in changes[best:] for name in change.layers)
    moved = f"error {_percent(tried[0])} before, {_percent(float(after.mean()))} after"
    remains = f", {_percent(tried[best])} with the first {best} layers" if best else ""
    warning = (
        f"{done} made the whole model worse on the {len(after)} samples that it is compared on, by more than chance "
        f"({moved}{remains}): {len(back)} layers have their old integers again, "
        f"{'all' if not best else 'the last'} that were changed; keep_worse=True would keep the new ones"
    )
    _LOG.warning(warning)
    return Kept(back, (warning,), Reason.TAKEN_BACK.why(error=f"{moved}{remains}"))


def without(kept: Kept, reports: Sequence[LayerReport]) -> tuple[LayerReport, ...]:
    """The reports of layers, with those that were taken back as unchanged."""
    return tuple(
        replace(report, accepted=False, improved=0, reason=kept.why, candidate="unchanged", after=report.before)
        if report.name in kept.taken_back and report.accepted
        else report
        for report in reports
    )


def _put(tensors: Mapping[str, onnx.TensorProto], initializers: dict[str, onnx.TensorProto]) -> None:
    for name, tensor in tensors.items():
        initializers[name].CopyFrom(tensor)


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    return copied


def _percent(error: float) -> str:
    return f"{100 * error:.3g} %"
