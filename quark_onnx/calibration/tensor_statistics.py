"""The values of a model's tensors, gathered batch by batch, and the tensors that no range holds."""

from __future__ import annotations

from collections.abc import Mapping
from queue import LifoQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration.value_histogram import ValueHistogram, value_histogram
from quark.onnx.errors import DataError
from quark.onnx.qdq.weight_params import WIDEST

__all__ = ["TensorStatistics"]

_BINS = 4096
_BYTES = 32 << 20  # of the bins of all threads; with very many tensors some threads wait for each other
_NOTHING = np.zeros(0, np.float32)


class TensorStatistics:
    """Value ranges of the tensors, gathered by several threads: each has its own, as far as there is room, and they add
    up to the same.

    A tensor that becomes NaN or Inf is left out from then on.

    Args:
        tensors: their names.
        threads: so many calls of `update` may be at work at the same time.

    Attributes:
        not_finite: "NaN" or "Inf" by tensor.
    """

    def __init__(self, tensors: list[str], threads: int) -> None:
        self._tensors = tensors
        most = max(1, _BYTES // (8 * _BINS * max(len(tensors), 1)))
        self._ranges = [_core.ValueRanges(len(tensors), _BINS) for _ in range(min(threads, most))]
        self._idle = LifoQueue[_core.ValueRanges]()
        for ranges in self._ranges:
            self._idle.put(ranges)
        self._filled: set[str] = set()
        self.not_finite: dict[str, str] = {}

    def update(self, values: Mapping[str, NDArray[np.generic]]) -> None:
        """Add the tensors of a batch."""
        ranges = self._idle.get()
        try:
            arrays: list[Any] = [
                _NOTHING if name in self.not_finite else np.ascontiguousarray(values[name]) for name in self._tensors
            ]
            self._filled.update(name for name, array in zip(self._tensors, arrays, strict=True) if array.size)
            while arrays and not self._added(ranges, arrays):
                pass
        finally:
            self._idle.put(ranges)

    def _added(self, ranges: _core.ValueRanges, arrays: list[Any]) -> bool:
        """Whether all were added. If not, the first that is not finite and those before it, which were, are emptied."""
        try:
            ranges.update(arrays)
        except ValueError as error:
            bad = next((i for i, array in enumerate(arrays) if not np.isfinite(array).all()), None)
            if bad is None:
                raise DataError(f"the float model's tensors are not what the model says: {error}") from error
            self.not_finite[self._tensors[bad]] = "NaN" if np.isnan(arrays[bad]).any() else "Inf"
            arrays[: bad + 1] = [_NOTHING] * (bad + 1)
            return False
        return True

    def choose(
        self, chosen: Mapping[str, ActivationRange]
    ) -> tuple[dict[str, tuple[float, float]], dict[str, str], dict[str, ValueHistogram]]:
        """(lowest, highest) of each tensor that has a range, why each of the others has none, and what was seen of the
        former.

        Args:
            chosen: for each tensor: how its range follows from its values.
        """
        whole, *others = self._ranges
        for more in others:
            whole.add(more)
        found: dict[str, tuple[float, float]] = {}
        left_out: dict[str, str] = {}
        seen: dict[str, ValueHistogram] = {}
        for i, name in enumerate(self._tensors):
            low, high = chosen[name].of(whole, i)
            if name in self.not_finite:
                left_out[name] = f"it becomes {self.not_finite[name]} on calibration data"
            elif name not in self._filled:
                left_out[name] = "it is empty on all calibration data, so that nothing is known of its range"
            elif high - low > WIDEST:
                left_out[name] = f"its values lie from {low:.3g} to {high:.3g}, too far apart for a scale"
            else:
                found[name] = low, high
                seen[name] = value_histogram(whole, i, found[name])
        return found, left_out, seen
