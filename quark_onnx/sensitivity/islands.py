"""Which activations stay in float because their quantizer alone does more harm than all others together should.

In a model that 8 bits suit, no quantizer alone makes an error of a 200th of an output's variance; in one that they
destroy, a handful does: the joint of boxes and scores, the argument of a logarithm, a masked score. These are found by
bisection, a group of quantizers at a time, so that a model without any costs one pass over a few samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.switched_model import Switch

__all__ = ["Island", "Islands", "islands"]

_HARM = 10**-2.2  # 22 dB: the error of one quantizer alone from which on it is an island. See docs/decisions.
_GOOD = 10**-2.8  # 28 dB: of all others together, from which on nothing further is looked for
_GAIN = 0.5  # of the error: where more is left, floats are no help
_REFINED = 0.6  # of the share allowed: as much goes to what does not destroy the model, but does most of the harm left
_FREE = 16384  # values a sample that may be floats whatever share of the activations they are: they cost nothing much
_LEAST = 10**-3.2  # 32 dB: a quantizer with less error is never an island


@dataclass(frozen=True)
class Island:
    """Tensors of one scale that stay in float.

    Attributes:
        tensors: their names.
        error: what their quantizer alone does to the output that suffers most: mean squared error over variance.
        share: of the values that go through activation quantizers, 0 to 1.
    """

    tensors: tuple[str, ...]
    error: float
    share: float


@dataclass(frozen=True)
class Islands:
    """What is to stay in float.

    Attributes:
        kept: in float, the most harmful first.
        before: the error that all activation quantizers make together, weights in float, as in `Island.error`.
        after: without those of the islands.
        left_out: those that destroy the model and are quantized all the same, as floats would be no help, or more than
            the share allowed.
    """

    kept: tuple[Island, ...]
    before: float
    after: float
    left_out: tuple[Island, ...] = ()

    @property
    def share(self) -> float:
        """This share (0 to 1) of the values that go through activation quantizers stays in float."""
        return math.fsum(island.share for island in self.kept)


def islands(damage: Damage, max_share: float) -> Islands:
    """Find them.

    Args:
        damage: of the model.
        max_share: of the values that go through activation quantizers may stay in float, 0 to 1.
    """
    rest = list(damage.switches)
    before = after = damage.error(rest)
    if before <= _GOOD:
        return Islands((), before, before)
    everything = sum(damage.elements.values()) or 1
    free = min(1.0, _FREE * damage.samples / everything)
    found, left_out, limit, room = list[Island](), list[Island](), _HARM, max(max_share, free)
    while after > _GOOD and limit >= _LEAST:
        left_out = []
        for switch in sorted(_harmful(damage, rest, limit), key=lambda switch: -damage.error([switch])):
            island = Island(switch.tensors, damage.error([switch]), damage.elements[switch.name] / everything)
            if sum(one.share for one in found) + island.share > room:
                left_out.append(island)
                continue
            found.append(island)
            rest.remove(switch)
        after = damage.error(rest)
        if limit == _HARM and (not found or left_out):
            break  # many make what there is together, or what destroys the model is too much of it
        limit, room = limit / 2, max(_REFINED * max_share, free)
    if after > _GAIN * before:
        return Islands((), before, before, (*found, *left_out) if limit == _HARM else tuple(found))
    return Islands(tuple(found), before, after, tuple(left_out) if limit == _HARM else ())


def _harmful(damage: Damage, switches: Sequence[Switch], limit: float) -> list[Switch]:
    """Those with so much error alone. A group with less holds none of them."""
    if not switches or damage.error(switches) < limit:
        return []
    if len(switches) == 1:
        return list(switches)
    half = len(switches) // 2
    return [*_harmful(damage, switches[:half], limit), *_harmful(damage, switches[half:], limit)]
