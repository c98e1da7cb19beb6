"""What an error at a model's outputs means, in a word."""

from __future__ import annotations

from typing import Literal

from quark.onnx.measures.deviation import Deviation

__all__ = ["Grade", "grade_of"]

Grade = Literal["good", "fair", "poor", "unknown"]

# These are shares of the outputs' variance. A classifier keeps its accuracy with 1 %, loses some of it below 10 %, and
# much above.
_GOOD, _FAIR = 0.01, 0.1
# These are shares of samples with the float model's class; one sample may always differ.
_GOOD_AGREEMENT, _FAIR_AGREEMENT = 0.95, 0.75


def grade_of(deviation: Deviation, samples: int) -> Grade:
    """The grade of a model by how far its outputs are from the float model's.

    Args:
        deviation: over these samples.
        samples: how many they are.
    """
    agreement, one = deviation.agreement, 1 / max(samples, 1)

    def within(error: float, share: float) -> bool:
        return deviation.error <= error and (agreement is None or agreement >= min(share, 1 - one))

    if within(_GOOD, _GOOD_AGREEMENT):
        return "good"
    return "fair" if within(_FAIR, _FAIR_AGREEMENT) else "poor"
