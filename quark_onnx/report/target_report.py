"""What came of quantizing to a target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["TargetReport", "TargetTry"]


@dataclass(frozen=True, kw_only=True)
class TargetTry:
    """One allocation of formats, quantized and finetuned.

    Attributes:
        measured: what the target is about.
        reached: whether that is enough.
        weight_bits, activation_bits: the mean of all values of weights, and of activations.
        bytes: of all constants.
        seconds: that it took.
    """

    measured: float
    reached: bool
    weight_bits: float
    activation_bits: float
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TargetReport:
    """What was wanted, what came of it, and what it took.

    Attributes:
        goal: the field of `Target` that was given.
        wanted: its value; with max_drop the lowest score or agreement that this leaves.
        reached: whether the model that was saved reaches it.
        samples: measured on.
        held_out: whether nothing was fitted to them.
        best: the try that was saved: of those that reach the target the one with the fewest bits, or else the nearest.
        tries: all of them, in order.
        weights, activations: how many tensors (activations: scales) have which format in it, by name of the type.
        seconds: of it all.
    """

    goal: str
    wanted: float
    reached: bool
    samples: int
    held_out: bool
    best: TargetTry
    tries: tuple[TargetTry, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    activations: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        """What came of it, in a line."""
        best = self.best
        verb = "is reached" if self.reached else "is NOT reached: the nearest is"
        formats = ", ".join(
            f"{kind} {' '.join(f'{name}: {count}' for name, count in counts.items())}"
            for kind, counts in (("weights", self.weights), ("activations", self.activations))
        )
        on = "held-out samples" if self.held_out else "samples that were fitted to, as there are too few"
        return (
            f"the target {self.goal}, {self.wanted:.5g}, {verb} ({best.measured:.5g} on {self.samples} {on}) with "
            f"{best.weight_bits:.2f} bits a weight and {best.activation_bits:.2f} an activation, {best.bytes} bytes of "
            f"constants, in {len(self.tries)} tries and {self.seconds:.0f} s; {formats}"
        )
