"""What a report says of activations that are quantized although their quantizers alone do much harm."""

from __future__ import annotations

import math

from quark.onnx.measures.grades import grade_of
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.islands import Islands

__all__ = ["decibels", "left_out_warning"]

_NAMED = 3  # tensors that a warning names
_LITTLE = 1.0  # dB that all of them together bring in float: with less, no room for them is missed


def left_out_warning(damage: Damage, found: Islands, max_share: float) -> str:
    """Which they are, and why they do not stay in float: no room, or little gained by it, as measured.

    Args:
        damage: of the model.
        found: its islands, with some left out.
        max_share: `MaxFloatShare`, 0 to 1.
    """
    kept = {island.tensors for island in found.kept}
    left = {island.tensors for island in found.left_out}
    on = [switch for switch in damage.switches if switch.tensors not in kept]
    destroyed = grade_of(damage.deviation(on), damage.samples) == "poor"
    without = damage.error([switch for switch in on if switch.tensors not in left])
    share = math.fsum(island.share for island in found.left_out)
    named = ", ".join(f"{island.tensors[0]!r} ({decibels(island.error)})" for island in found.left_out[:_NAMED])
    more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
    harm = "destroy the model" if destroyed else f"take an output to {decibels(found.after)}"
    return (
        f"8 bits {harm}: the quantizers of {named}{more} alone take an output to so many dB. In float they would be "
        f"another {100 * share:.3g} % of the activations, and {_gained(found.after, without)}: "
        f"{_why(share * found.size > found.room, found, without, max_share)}"
    )


def _gained(after: float, without: float) -> str:
    return f"the output that suffers most would be at {decibels(without)} in place of {decibels(after)}"


def _why(is_too_much: bool, found: Islands, without: float, max_share: float) -> str:
    """Why they are quantized, and what to do."""
    if without > found.after * 10 ** (-_LITTLE / 10):
        return "floats are little help"
    if is_too_much:
        room = f"MaxFloatShare={max_share:g} leaves room for {100 * found.room / found.size:.3g} %"
        return f"{room}; raise it, or give those tensors 16 bits"
    return f"too little for so many floats, though MaxFloatShare={max_share:g} leaves room for them"


def decibels(error: float) -> str:
    """An error, a share of an output's variance, in dB."""
    return f"{-10 * math.log10(max(error, 1e-12)):.1f} dB"
