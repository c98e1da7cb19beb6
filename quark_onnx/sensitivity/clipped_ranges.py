"""Which activations do more harm by what their range cuts off than by rounding, and get the range of all values.

A percentile is chosen by the values of a tensor alone. Where the rare large ones are what the model is about, as the
scores of a detector that finds something, the outputs tell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from quark.onnx.calibration.calibrate import Calibration
from quark.onnx.sensitivity.damage import Damage

__all__ = ["with_wider_ranges"]

_LEAST = 10**-3.5  # 35 dB: what makes less error alone is no matter
_BETTER = 0.7  # times the error: more may be the chance of a few samples

Tensors = tuple[str, ...]  # of one scale


def with_wider_ranges(
    calibration: Calibration, alone: Mapping[Tensors, float], measure: Callable[[Calibration], Damage], items: int
) -> tuple[Calibration, dict[Tensors, float]]:
    """Ranges of all values for the tensors whose quantizers, each alone, then make less error; and the errors.

    Args:
        calibration: of the model.
        alone: the error of each quantizer alone.
        measure: makes the measure of another calibration.
        items: so many, the first ones, gave these errors.
    """
    widest = {
        tensors: found
        for tensors, error in alone.items()
        if error >= _LEAST and (found := _widest(calibration, tensors))
    }
    better: dict[Tensors, float] = {}
    if widest:
        damage = measure(_with_ranges(calibration, widest))
        wide = {switch.tensors: switch for switch in damage.switches}
        errors = {tensors: damage.error([wide[tensors]], items) for tensors in widest if tensors in wide}
        better = {tensors: error for tensors, error in errors.items() if error <= _BETTER * alone[tensors]}
    ranges = {tensors: widest[tensors] for tensors in better}
    return _with_ranges(calibration, ranges), {**alone, **better}


def _widest(calibration: Calibration, tensors: Tensors) -> dict[str, tuple[float, float]]:
    """The ranges of all values, where they are others than those chosen."""
    ranges, seen = calibration.ranges, calibration.histograms
    found = {name: (seen[name].low, seen[name].high) for name in tensors if name in ranges and name in seen}
    return {name: limits for name, limits in found.items() if limits != ranges[name]}


def _with_ranges(calibration: Calibration, ranges: Mapping[Tensors, dict[str, tuple[float, float]]]) -> Calibration:
    changed = {name: limits for one in ranges.values() for name, limits in one.items()}
    return replace(calibration, ranges=calibration.ranges | changed)
