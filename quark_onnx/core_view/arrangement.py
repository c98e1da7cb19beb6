"""How a layer's tensors become what the core cuts rows from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Arrangement", "Transposed", "TransposedInput"]


class Arrangement:
    """Arrays stay as they are."""

    def input(self, x: NDArray[np.generic]) -> NDArray[Any]:
        """What feeds the layer, in either graph.

        Raises:
            ValueError: its shape does not fit the layer.
        """
        return x

    def output(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """The float graph's output.

        Raises:
            ValueError: its shape does not fit the layer.
        """
        return y


class TransposedInput(Arrangement):
    """Gemm with transA: the input is (K, rows)."""

    def input(self, x: NDArray[np.generic]) -> NDArray[Any]:
        return x.T


class Transposed(Arrangement):
    """MatMul whose weight is the first input: the input is (..., K, rows), the output (..., outputs, rows)."""

    def input(self, x: NDArray[np.generic]) -> NDArray[Any]:
        return x.swapaxes(-1, -2)

    def output(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        return y.swapaxes(-1, -2)
