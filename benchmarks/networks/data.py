"""Data that is smooth, as images and spectra are, and ids as words come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["smooth_noise", "token_ids"]

_CELLS = (2, 4, 8, 16, 32)  # along an axis; each grid twice as fine has half the amplitude


def smooth_noise(shape: Sequence[int], rng: np.random.Generator) -> NDArray[np.float32]:
    """(samples, channels, height, width): noise on grids of several sizes, interpolated, and a little at every pixel.

    Samples differ in brightness and contrast, channels of a sample share a half of what they are.
    """
    channels, height, width = shape[1:]
    made = np.empty(shape, np.float32)
    for image in made:
        image[:] = 0.05 * rng.standard_normal(image.shape, np.float32)
        for cells in _CELLS:
            grid = rng.standard_normal((channels + 1, cells + 1, cells + 1), np.float32) * np.float32(2 / cells**0.5)
            rows, columns = _weights(height, cells), _weights(width, cells)
            image += rows @ (0.5 * (grid[1:] + grid[:1])) @ columns.T
        image *= np.float32(rng.uniform(0.4, 1.2))
        image += np.float32(rng.normal(0, 0.4))
    return made


def _weights(length: int, cells: int) -> NDArray[np.float32]:
    """(length, cells + 1): how a position follows from the grid's two next to it."""
    at = np.linspace(0, cells, length, dtype=np.float32)[:, None]
    weights: NDArray[np.float32] = np.maximum(0, 1 - np.abs(at - np.arange(cells + 1, dtype=np.float32)))
    return weights


def token_ids(shape: Sequence[int], vocabulary: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Ids whose frequency falls as 1 / rank, as that of words does."""
    ranks: NDArray[Any] = np.exp(rng.uniform(0, np.log(vocabulary), tuple(shape)))
    return np.minimum(ranks.astype(np.int64), vocabulary) - 1
