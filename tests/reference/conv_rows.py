"""The rows of a convolution: what every output position sees of the input (im2col), cut one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")  # in the order of the core's numbers


@dataclass(frozen=True, kw_only=True)
class Conv:
    """The attributes of ONNX Conv; pads: the starts of all axes, then the ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str
    groups: int

    def padding(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and after an axis of this size."""
        window = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        if self.auto_pad == "NOTSET":
            return self.pads[axis], self.pads[axis + len(self.kernel)]
        if self.auto_pad == "VALID":
            return 0, 0
        outputs = -(-size // self.strides[axis])
        total = max(0, (outputs - 1) * self.strides[axis] + window - size)
        less, more = total // 2, total - total // 2
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)

    def rows(self, x: np.ndarray) -> np.ndarray:
        """x (samples, channels, *sizes) -> (groups, samples * positions, K)."""
        paddings = [self.padding(axis, size) for axis, size in enumerate(x.shape[2:])]
        padded = np.pad(x, [(0, 0), (0, 0), *paddings])
        windows = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        positions = [
            (size - window) // stride + 1
            for size, window, stride in zip(padded.shape[2:], windows, self.strides, strict=True)
        ]
        rows = []
        for sample in padded:
            for position in np.ndindex(*positions):
                corner = [p * stride for p, stride in zip(position, self.strides, strict=True)]
                taps = [slice(c, c + w, d) for c, w, d in zip(corner, windows, self.dilations, strict=True)]
                rows.append(sample[(slice(None), *taps)].reshape(self.groups, -1))
        return np.stack(rows, axis=1)


def output_rows(y: np.ndarray, groups: int) -> np.ndarray:
    """y (samples, groups * outputs, *sizes) -> (groups, samples * positions, outputs)."""
    samples, channels = y.shape[:2]
    by_position = y.reshape(samples, groups, channels // groups, -1).transpose(1, 0, 3, 2)
    return by_position.reshape(groups, -1, channels // groups)
