"""The rows of Conv and ConvTranspose: what every output position sees of the input (im2col), cut one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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

    op_type = "Conv"

    @property
    def core(self) -> tuple[Any, ...]:
        """The argument `conv` of `_core.Layer`."""
        return self.kernel, self.strides, self.dilations, self.pads, AUTO_PADS.index(self.auto_pad)

    @property
    def onnx(self) -> dict[str, Any]:
        """The node's attributes; kernel_shape is left to the weight."""
        pads = {"pads": self.pads} if self.auto_pad == "NOTSET" else {"auto_pad": self.auto_pad}
        return {"strides": self.strides, "dilations": self.dilations, "group": self.groups, **pads}

    def window(self, axis: int) -> int:
        return self.dilations[axis] * (self.kernel[axis] - 1) + 1

    def padding(self, axis: int, size: int) -> tuple[int, int]:
        """Zeros before and after an axis of this size."""
        if self.auto_pad == "NOTSET":
            return self.pads[axis], self.pads[axis + len(self.kernel)]
        if self.auto_pad == "VALID":
            return 0, 0
        outputs = -(-size // self.strides[axis])
        return self.halves((outputs - 1) * self.strides[axis] + self.window(axis) - size)

    def halves(self, total: int) -> tuple[int, int]:
        less, more = max(0, total) // 2, max(0, total) - max(0, total) // 2
        return (less, more) if self.auto_pad == "SAME_UPPER" else (more, less)

    def outputs(self, axis: int, size: int) -> int:
        """The output's size on an axis."""
        return (size + sum(self.padding(axis, size)) - self.window(axis)) // self.strides[axis] + 1

    def rows(self, x: np.ndarray) -> np.ndarray:
        """x (samples, channels, *sizes) -> (groups, samples * positions, K)."""
        paddings = [self.padding(axis, size) for axis, size in enumerate(x.shape[2:])]
        padded = np.pad(x, [(0, 0), (0, 0), *paddings])
        windows = [self.window(axis) for axis in range(len(self.kernel))]
        positions = [self.outputs(axis, size) for axis, size in enumerate(x.shape[2:])]
        rows = []
        for sample in padded:
            for position in np.ndindex(*positions):
                corner = [p * stride for p, stride in zip(position, self.strides, strict=True)]
                taps = [slice(c, c + w, d) for c, w, d in zip(corner, windows, self.dilations, strict=True)]
                rows.append(sample[(slice(None), *taps)].reshape(self.groups, -1))
        return np.stack(rows, axis=1)

    def weight_rows(self, weight: np.ndarray) -> np.ndarray:
        """weight (groups * outputs, channels / groups, *kernel) -> (groups, outputs, K)."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)


@dataclass(frozen=True, kw_only=True)
class ConvTranspose(Conv):
    """The attributes of ONNX ConvTranspose. Its padding is cut off the output."""

    output_padding: tuple[int, ...]
    output_shape: tuple[int, ...] | None

    op_type = "ConvTranspose"

    @property
    def core(self) -> tuple[Any, ...]:
        return *super().core, self.output_padding, self.output_shape

    @property
    def onnx(self) -> dict[str, Any]:
        shape = {} if self.output_shape is None else {"output_shape": self.output_shape}
        return {**super().onnx, "output_padding": self.output_padding, **shape}

    def whole(self, axis: int, size: int) -> int:
        """The output's size before the padding is cut off."""
        return self.strides[axis] * (size - 1) + self.output_padding[axis] + self.window(axis)

    def padding(self, axis: int, size: int) -> tuple[int, int]:
        if self.output_shape is not None:
            return self.halves(self.whole(axis, size) - self.output_shape[axis])
        if self.auto_pad.startswith("SAME"):  # onnxruntime never takes a negative total
            return self.halves(self.whole(axis, size) - size * self.strides[axis])
        return super().padding(axis, size)

    def outputs(self, axis: int, size: int) -> int:
        return self.whole(axis, size) - sum(self.padding(axis, size))

    def rows(self, x: np.ndarray) -> np.ndarray:
        """Every input is put where its products with the weight are added to the output."""
        samples, channels, *sizes = x.shape
        starts = [self.padding(axis, size)[0] for axis, size in enumerate(sizes)]
        shape = tuple(self.outputs(axis, size) for axis, size in enumerate(sizes))
        rows = np.zeros((*shape, samples, channels, *self.kernel), x.dtype)
        for position in np.ndindex(*sizes):
            for tap in np.ndindex(*self.kernel):
                steps = zip(position, self.strides, tap, self.dilations, starts, strict=True)
                output = tuple(p * s + k * d - start for p, s, k, d, start in steps)
                if all(0 <= o < n for o, n in zip(output, shape, strict=True)):
                    rows[(*output, slice(None), slice(None), *tap)] = x[(slice(None), slice(None), *position)]
        by_position = rows.reshape(-1, samples, self.groups, channels // self.groups * int(np.prod(self.kernel)))
        return by_position.transpose(2, 1, 0, 3).reshape(self.groups, -1, by_position.shape[-1])

    def weight_rows(self, weight: np.ndarray) -> np.ndarray:
        """weight (channels, outputs, *kernel) -> (groups, outputs, K)."""
        parts = np.split(weight, self.groups)
        return np.stack([part.swapaxes(0, 1).reshape(weight.shape[1], -1) for part in parts])


def conv_of(attributes: Any) -> Conv:
    """The convolution that the package's attributes of a layer describe."""
    given = dict(vars(attributes))
    given |= {"kernel": given.pop("kernel_shape"), "groups": given.pop("group")}
    return (ConvTranspose if "output_shape" in given else Conv)(**given)


def output_rows(y: np.ndarray, groups: int) -> np.ndarray:
    """y (samples, groups * outputs, *sizes) -> (groups, samples * positions, outputs)."""
    samples, channels = y.shape[:2]
    by_position = y.reshape(samples, groups, channels // groups, -1).transpose(1, 0, 3, 2)
    return by_position.reshape(groups, -1, channels // groups)
