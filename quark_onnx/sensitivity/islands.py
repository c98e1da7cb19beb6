"""Which activations stay in float because their quantizers do most of the harm that all of them do together.

In a model that 8 bits suit, no quantizer alone makes an error of a 160th of an output's variance; in one that they
destroy, a handful does: the joint of boxes and scores, the argument of a logarithm, a masked score. Whether there is
one is found by bisection, a group of quantizers at a time, so that a model without any costs few passes over a few
samples. If there is, every quantizer is measured alone, and those with the most error for what they hold stay in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.switched_model import Switch

__all__ = ["HARM", "Island", "Islands", "is_destroyed", "islands"]

HARM = 10**-2.2  # 22 dB: the error of one quantizer alone from which on it destroys the model. See docs/decisions.
_GOOD = 10**-2.8  # 28 dB: of all others together, from which on nothing further is looked for
_GAIN = 0.5  # of the error: where more is left, floats are no help
_CHEAP = 0.4  # of the share allowed, within which whatever lessens the error may stay in float
_DB = 100.0  # dB for each 1 of share: so much what goes beyond must bring, 1 dB for each percent of the activations
_FREE = 16384  # values a sample that may be floats whatever share of the activations they are: they cost nothing much
_STATES = 6  # of the islands that are measured, from few to all
_LEAST = 1e-4  # 40 dB: a quantizer with less error is never an island
_SLACK = 1.1  # times the least error measured: fewer islands with no more than that are as good


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
        left_out: those that alone take an output below 22 dB and are quantized all the same, as floats would be no
            help, or too much; none where `after` is good.
        room: so many values a sample may stay in float besides those kept.
        size: so many go through activation quantizers.
    """

    kept: tuple[Island, ...]
    before: float
    after: float
    left_out: tuple[Island, ...] = ()
    room: float = 0.0
    size: float = 0.0

    @property
    def share(self) -> float:
        """This share (0 to 1) of the values that go through activation quantizers stays in float."""
        return math.fsum(island.share for island in self.kept)


def is_destroyed(damage: Damage) -> bool:
    """Whether any quantizer alone destroys the model."""
    return damage.error(damage.switches) > _GOOD and _has_harmful(damage, damage.switches)


def islands(damage: Damage, errors: Mapping[tuple[str, ...], float], max_share: float) -> Islands:
    """Find them in a model that is destroyed.

    Args:
        damage: of the model.
        errors: of each quantizer alone, by its tensors.
        max_share: of the values that go through activation quantizers may stay in float, 0 to 1.
    """
    before = damage.error(damage.switches)
    everything = sum(damage.elements.values()) or 1
    alone = {switch: errors[switch.tensors] for switch in damage.switches}
    share = {switch: damage.elements[switch.name] / everything for switch in damage.switches}
    harmful = (switch for switch in damage.switches if alone[switch] >= _LEAST)
    order = sorted(harmful, key=lambda switch: -alone[switch] / max(share[switch], 1 / everything))
    free = min(1.0, _FREE * damage.samples / everything)
    others = math.fsum(error for error in alone.values() if error < _LEAST)
    order = order[: _affordable([(alone[switch], share[switch]) for switch in order], others, max_share, free)]
    count, after = _best_count(damage, order)
    found = [Island(switch.tensors, alone[switch], share[switch]) for switch in order[:count]]
    if after > _GAIN * before:
        found, after = [], before
    size = everything / damage.samples
    room = max(0.0, max(max_share * size, _FREE) - size * math.fsum(island.share for island in found))
    if after <= _GOOD:
        return Islands(_by_error(found), before, after, (), room, size)
    taken = {island.tensors for island in found}
    destroying = (switch for switch in damage.switches if switch.tensors not in taken and alone[switch] >= HARM)
    left_out = (Island(switch.tensors, alone[switch], share[switch]) for switch in destroying)
    return Islands(_by_error(found), before, after, _by_error(left_out), room, size)


def _by_error(found: Iterable[Island]) -> tuple[Island, ...]:
    return tuple(sorted(found, key=lambda island: -island.error))


def _affordable(quantizers: Sequence[tuple[float, float]], others: float, max_share: float, free: float) -> int:
    """So many of the first quantizers may stay in float, as if errors added up.

    Args:
        quantizers: the error and the share of each, the one with the most error for its share first.
        others: the error of all that are no candidates.
        free: share that may stay in float whatever is allowed.
    """
    left, used, count = math.fsum(error for error, _ in quantizers) + others, 0.0, 0
    cheap, at_cheap = max(_CHEAP * max_share, free), None
    for index, (error, share) in enumerate(quantizers):
        if left <= _GOOD or used + share > max(max_share, free):
            break
        if used + share > cheap and at_cheap is None:
            at_cheap = used, left
        left, used = max(left - error, others), used + share
        if at_cheap is None or _db(at_cheap[1], left) >= _DB * (used - at_cheap[0]):
            count = index + 1
    return count


def _db(error: float, less: float) -> float:
    return 10 * math.log10(error / less) if less > 0 else math.inf


def _best_count(damage: Damage, order: Sequence[Switch]) -> tuple[int, float]:
    """How many of these, the first ones, stay in float, and the error of all other quantizers together: the fewest that
    are about as good as any.
    """
    counts = sorted({round(len(order) * state / _STATES) for state in range(1, _STATES + 1)} - {0})
    errors = {}
    for count in counts:
        kept = set(order[:count])
        errors[count] = damage.error([switch for switch in damage.switches if switch not in kept])
    least = min(errors.values(), default=math.inf)
    return next(((n, error) for n, error in errors.items() if error <= _SLACK * least), (0, math.inf))


def _has_harmful(damage: Damage, switches: Sequence[Switch]) -> bool:
    """Whether one of them destroys the model. A group with less error holds none. Later ones come first, as they cost
    less: what lies before them runs as it is.
    """
    if not switches or damage.error(switches) < HARM:
        return False
    half = len(switches) // 2
    return half == 0 or _has_harmful(damage, switches[half:]) or _has_harmful(damage, switches[:half])
