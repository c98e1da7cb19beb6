"""A normalization as a layer with one input per output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quark.onnx.core_view.arrangement import Arrangement
from quark.onnx.operators.normalization_attributes import NormAttributes

__all__ = ["NormalizedInput"]


@dataclass(frozen=True, eq=False)
class NormalizedInput(Arrangement):
    """The layer is output = xhat * scale + bias; its input is xhat, what the node gives with scale 1 and bias 0.

    Input and output become (samples, elements of the scale, positions): each element is a layer of its own. ONNX
    BatchNormalization, GroupNormalization (with a scale per channel, or per group as in opset 18),
    InstanceNormalization, LayerNormalization (with any scale that differs along some axes and not along others).

    Attributes:
        attributes: of the node.
        scale_shape: of the initializer.
        x_scale, x_zero_point: of 8-bit inputs.
        statistics: mean and variance of BatchNormalization, (channels,) float32; none of others.
    """

    attributes: NormAttributes
    scale_shape: tuple[int, ...]
    x_scale: float
    x_zero_point: int
    statistics: tuple[NDArray[np.float32], ...]

    def input(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """xhat, float32."""
        real = x.astype(np.float32, copy=False)
        if x.dtype != np.float32:
            real = (real - np.float32(self.x_zero_point)) * np.float32(self.x_scale)
        return self._elements_apart(self._normalized(real))

    def output(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._elements_apart(y)

    def _normalized(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        epsilon = np.float32(self.attributes.epsilon)
        if self.statistics:
            mean, variance = (values.reshape(-1, *(1,) * (x.ndim - 2)) for values in self.statistics)
            xhat: NDArray[np.float32] = (x - mean) / np.sqrt(variance + epsilon)
            return xhat
        rows = x.reshape(self.attributes.count_of_means(x.shape), -1)  # what is averaged lies side by side
        xhat = rows - rows.mean(axis=1, keepdims=True)
        xhat /= np.sqrt(np.square(xhat).mean(axis=1, keepdims=True) + epsilon)
        return xhat.reshape(x.shape)

    def _elements_apart(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        elements = math.prod(self.scale_shape)
        if not self.attributes.scale_lies_on_last_axes:
            return array.reshape(len(array), elements, -1)  # the channels, or groups of neighbours among them
        along = (1,) * (array.ndim - len(self.scale_shape)) + self.scale_shape
        if along[0] != 1:
            raise ValueError("its scale differs along the first axis, which counts samples")
        differs = [axis for axis in range(1, array.ndim) if along[axis] != 1]
        is_the_same = [axis for axis in range(1, array.ndim) if along[axis] == 1]
        return array.transpose(0, *differs, *is_the_same).reshape(len(array), elements, -1)
