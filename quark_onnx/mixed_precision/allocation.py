"""Give tensors more bits, one step after the other, where a bit takes most error away.

The errors that quantizers make at the outputs are taken to add up, as those of independent roundings do. Then the
fewest bits for an error lie along the lower convex hulls of error over bits (Shoham and Gersho, Efficient bit
allocation for an arbitrary set of quantizers, IEEE Trans. ASSP 36(9), 1988).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quark.onnx.config.spec import QTensorConfig

__all__ = ["Choice", "Option", "Path"]


@dataclass(frozen=True)
class Option:
    """One format that a tensor may have.

    Attributes:
        spec: None of float.
        bits: that all of its values take.
        error: that it makes at the outputs alone.
    """

    spec: QTensorConfig | None
    bits: float
    error: float


@dataclass(frozen=True)
class Choice:
    """The formats that a weight, or the activations of one scale, may have.

    Attributes:
        tensors: by name.
        is_weight: or else it is an activation.
        elements: values, of an activation those of a sample.
        options: the one with the fewest bits first.
    """

    tensors: tuple[str, ...]
    is_weight: bool
    elements: float
    options: tuple[Option, ...]


class Path:
    """All allocations that are worth it, from the fewest bits to the least error.

    Args:
        choices: of the tensors.

    Attributes:
        steps: pairs of a choice and the option that it gets, in the order in which they are taken.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self.choices = tuple(choices)
        ranked = []
        for at, choice in enumerate(self.choices):
            for before, after in _hull(choice.options):
                a, b = choice.options[before], choice.options[after]
                ranked.append(((a.error - b.error) / (b.bits - a.bits), at, after))
        self.steps = [(at, after) for _, at, after in sorted(ranked, key=lambda step: (-step[0], step[1], step[2]))]

    def __len__(self) -> int:
        return len(self.steps)

    def at(self, count: int) -> list[Option]:
        """What each choice has after so many steps."""
        chosen = [choice.options[0] for choice in self.choices]
        for at, option in self.steps[:count]:
            chosen[at] = self.choices[at].options[option]
        return chosen

    def error(self, count: int) -> float:
        """The error that should be left after so many steps."""
        return sum(option.error for option in self.at(count))

    def bits(self, count: int) -> float:
        """The bits of all tensors after so many steps."""
        return sum(option.bits for option in self.at(count))

    def first_within(self, error: float) -> int:
        """The fewest steps that should leave no more error."""
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.error(middle) <= error else (middle + 1, high)
        return low


def _hull(options: Sequence[Option]) -> list[tuple[int, int]]:
    """The steps along the lower convex hull of error over bits, from the first option on, by index."""
    hull = [0]
    for at in range(1, len(options)):
        if options[at].error >= options[hull[-1]].error:
            continue  # more bits for nothing
        while len(hull) > 1 and _slope(options, hull[-2], hull[-1]) <= _slope(options, hull[-1], at):
            hull.pop()
        hull.append(at)
    return list(pairwise(hull))


def _slope(options: Sequence[Option], before: int, after: int) -> float:
    """Error that a bit takes away."""
    return (options[before].error - options[after].error) / (options[after].bits - options[before].bits)
