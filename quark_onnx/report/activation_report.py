"""The values of one activation on the calibration data, and the range that its integers cover."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

__all__ = ["ActivationReport"]


@dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """One quantized activation.

    Attributes:
        name: of the tensor in the float model.
        low, high: the smallest and the largest value seen.
        range_low, range_high: what the quantizer covers; values outside are cut off.
        clipped: share of the values seen outside of that range, 0 to 1, to the width of a bin of calibration.
        counts: a histogram of the values seen, in bins of equal width from `low` to `high`.
    """

    name: str
    low: float
    high: float
    range_low: float
    range_high: float
    clipped: float
    counts: tuple[int, ...]

    @property
    def reach(self) -> float:
        """The largest absolute value of the range."""
        return max(abs(self.range_low), abs(self.range_high))

    @property
    def usual(self) -> float:
        """The smallest bound that the absolute values of 99.9 % of all values keep, to the width of a bin."""
        total, width = sum(self.counts), self.bin_width
        if not total:
            return 0.0
        bins = sorted(
            (max(abs(self.low + index * width), abs(self.low + (index + 1) * width)), count)
            for index, count in enumerate(self.counts)
        )
        sums = accumulate(count for _, count in bins)
        return next(edge for (edge, _), seen in zip(bins, sums, strict=True) if seen >= 0.999 * total)

    @property
    def bin_width(self) -> float:
        """Of the histogram."""
        return (self.high - self.low) / max(len(self.counts), 1)
