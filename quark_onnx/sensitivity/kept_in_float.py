"""The step between Q/DQ insertion and finetuning that keeps islands in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx

from quark.onnx.calibration.calibrate import Calibration
from quark.onnx.calibration_data.checked_items import sample_count
from quark.onnx.graph.live_bytes import live_bytes
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.sessions import ROOM, Batch, Engine
from quark.onnx.qdq.insert_qdq import QdqModel
from quark.onnx.sensitivity.clipped_ranges import with_wider_ranges
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.islands import Islands, is_destroyed, islands
from quark.onnx.sensitivity.left_out import decibels, left_out_warning
from quark.onnx.sensitivity.weights_in_float import weights_in_float, without_weights

__all__ = ["KeptInFloat", "kept_in_float"]

_COPIES = 5  # of the float model: one with switches, and what onnxruntime makes of it with and without them
_LARGE_ITEM = 48 << 20  # bytes of its tensors at the same time, above which one item is enough: each has many positions
_ALONE = 8  # runs of an item for each sample, with one quantizer alone: finetuning makes as many passes or more
_HARM = "its quantizer alone takes the output that it harms most to {}"
_NAMED = 3  # tensors that a note names


@dataclass(frozen=True)
class KeptInFloat:
    """A quantized model with islands, and what the report says of them.

    Attributes:
        calibration: tensors of islands have no range, and the reason says how much harm their quantizer does;
            ranges of others may be wider.
        inserted: the Q/DQ model that it makes.
        notes, warnings: for the report.
    """

    calibration: Calibration
    inserted: QdqModel
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def kept_in_float(
    model: onnx.ModelProto,
    calibration: Calibration,
    insert: Callable[[Calibration], QdqModel],
    items: Sequence[Batch],
    engine: Engine,
    max_share: float,
) -> KeptInFloat:
    """Insert Q/DQ, and again without the quantizers that destroy the model, if there are any.

    Args:
        model: the float model.
        calibration: of it.
        insert: makes the Q/DQ model of a calibration.
        items: a few samples of the data; with none, or a model that draws random numbers, nothing is looked for.
        engine: runs the models.
        max_share: of the values that go through activation quantizers may stay in float, 0 to 1; 0: nothing is looked
            for.
    """
    inserted = insert(calibration)
    if max_share <= 0 or not items or any(map(is_random, model.graph.node)):
        return KeptInFloat(calibration, inserted)
    if not _fits(model, engine):
        return KeptInFloat(
            calibration, inserted, warnings=(_unmeasured("too little memory for more copies of the model"),)
        )
    if live_bytes(model) * sample_count(items[0]) > _LARGE_ITEM:
        items = items[:1]
    try:
        return _with_islands(model, calibration, inserted, insert, (items, engine), max_share)
    except Exception as error:  # whatever it is: the quantized model is there, and nothing of the caller's runs here
        return KeptInFloat(calibration, inserted, warnings=(_unmeasured(f"{type(error).__name__}: {error}"),))


def _with_islands(
    model: onnx.ModelProto,
    calibration: Calibration,
    inserted: QdqModel,
    insert: Callable[[Calibration], QdqModel],
    on: tuple[Sequence[Batch], Engine],
    max_share: float,
) -> KeptInFloat:
    """The model with what measuring says."""
    wider, found, warnings = _found(model, calibration, inserted, insert, on, max_share)
    if not found.kept and wider is calibration:
        return KeptInFloat(calibration, inserted, warnings=warnings)
    why = {tensor: _HARM.format(decibels(island.error)) for island in found.kept for tensor in island.tensors}
    ranges = {name: limits for name, limits in wider.ranges.items() if name not in why}
    widened = [name for name, limits in ranges.items() if limits != calibration.ranges[name]]
    notes = [_widened(widened)] if widened else []
    runs = _ALONE * calibration.samples
    calibration = replace(wider, ranges=ranges, without_range=wider.without_range | why)
    inserted = insert(calibration)
    if found.kept:
        notes.append(
            f"{100 * found.share:.3g} % of the activations stay in float, as their quantizers alone destroy the model "
            f"(MaxFloatShare): with them the quantized activations took an output to {decibels(found.before)}, without "
            f"to {decibels(found.after)}"
        )
        weights = weights_in_float(model, inserted.model, on, found.room, runs) if _fits(model, on[1]) else {}
        if weights:
            notes.append(_with_weights(len(weights)))
            reasons = {name: _HARM.format(decibels(error)) for name, error in weights.items()}
            calibration = without_weights(calibration, model, reasons)
            inserted = insert(calibration)
    return KeptInFloat(calibration, inserted, tuple(notes), warnings)


def _fits(model: onnx.ModelProto, engine: Engine) -> bool:
    """Whether there is memory for the copies of a model that a measure makes."""
    weights = 4 * sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    return bool(_COPIES * weights + ROOM <= engine.memory.free())


def _found(
    model: onnx.ModelProto,
    calibration: Calibration,
    inserted: QdqModel,
    insert: Callable[[Calibration], QdqModel],
    on: tuple[Sequence[Batch], Engine],
    max_share: float,
) -> tuple[Calibration, Islands, tuple[str, ...]]:
    """The islands, the calibration with the ranges that they are those of, and warnings. It is the given one where
    wider ranges do not help all together, as each alone seemed to.
    """
    damage = Damage(model, inserted.model, *on)
    before = damage.error(damage.switches)
    if not is_destroyed(damage):
        return calibration, Islands((), before, before), ()
    items = max(1, _ALONE * calibration.samples // len(damage.switches))
    alone = {switch.tensors: damage.error([switch], items) for switch in damage.switches}
    if _fits(model, on[1]):  # beside what measures the ranges as they are
        wider, errors = with_wider_ranges(
            calibration, alone, lambda other: Damage(model, insert(other).model, *on), items
        )
        if wider.ranges != calibration.ranges:
            wide = Damage(model, insert(wider).model, *on)
            found = islands(wide, errors, max_share)
            if found.after < before:
                return wider, replace(found, before=before), _warnings(wide, found, max_share)
    found = islands(damage, alone, max_share)
    return calibration, found, _warnings(damage, found, max_share)


def _warnings(damage: Damage, found: Islands, max_share: float) -> tuple[str, ...]:
    return (left_out_warning(damage, found, max_share),) if found.left_out else ()


def _widened(names: Sequence[str]) -> str:
    named = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"the ranges of {named}{more} hold all values: what the calibration method cut off did more harm to an output "
        "than wider steps do"
    )


def _with_weights(count: int) -> str:
    weights = "1 weight stays" if count == 1 else f"{count} weights stay"
    return (
        f"{weights} in float (MaxFloatShare): all that reads them computes with activations in float, and their "
        "quantizers alone destroy the model"
    )


def _unmeasured(why: str) -> str:
    return f"whether single activation quantizers destroy the model was not measured (MaxFloatShare): {why}"
