"""How a weight's initializer becomes rows, one per output channel, and how rows become the initializer again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowLayout"]

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class RowLayout:
    """The axes of an initializer, and their order in rows (outputs, K) of K inputs each.

    Attributes:
        parts: the initializer's shape, with axes joined or split so that each is a part of the outputs or of K.
        order: of the parts in the rows: those of the outputs, then those of K.
        outputs: output channels, of all groups.
    """

    parts: tuple[int, ...]
    order: tuple[int, ...]
    outputs: int

    def rows(self, weight: NDArray[_Number]) -> NDArray[_Number]:
        """An initializer's values as (outputs, K), C-contiguous."""
        ordered = weight.reshape(self.parts).transpose(self.order)
        return np.ascontiguousarray(ordered.reshape(self.outputs, -1))

    def values(self, rows: NDArray[_Number]) -> NDArray[_Number]:
        """Rows (outputs, K) in the initializer's order: its shape, or one that holds the same values in that order."""
        ordered = rows.reshape([self.parts[axis] for axis in self.order])
        return ordered.transpose(np.argsort(self.order))
