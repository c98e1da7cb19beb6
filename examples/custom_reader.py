"""A reader of your own: python examples/custom_reader.py

A reader gives one item at a time, so that the data need not fit into memory. Any object with get_next() is one, as
onnxruntime and AMD Quark have it, and so is a generator. Here each item is an image, and the reader turns it a little:
what calibration sees should vary as much as what the model sees in use.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from digits_data import FLOAT_MODEL, accuracy, load_digits

from quark.onnx import quantize


class ShiftedDigits:
    """Each calibration image once as it is, and once moved by a pixel."""

    def __init__(self) -> None:
        self._items = self._made()

    def _made(self) -> Iterator[dict[str, np.ndarray]]:
        images, _ = load_digits("calibration")  # from a disk or a database image by image, where there are many
        for image in images:
            for moved in (image, np.roll(image, 1, axis=2)):
                yield {"image": moved[np.newaxis]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next item: an array for each input, with an axis that counts samples; None at the end."""
        return next(self._items, None)


def main() -> None:
    # A reader is read once: give each call a new one. A generator of the same items does as well.
    report = quantize(FLOAT_MODEL, "digits_shifted.onnx", ShiftedDigits())
    print(report)
    print(
        f"{report.samples} samples; accuracy {accuracy(FLOAT_MODEL):.2f} % -> {accuracy('digits_shifted.onnx'):.2f} %"
    )


if __name__ == "__main__":
    main()
