"""What the node of a normalization says of how it normalizes."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from quark.onnx.operators.attributes import ConvAttributes, LayerAttributes, NodeParts, Shape
from quark.onnx.operators.row_layout import RowLayout

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "BatchNormAttributes", "GroupNormAttributes", "InstanceNormAttributes", "LayerNormAttributes", "NormAttributes",
]  # fmt: skip

_FLOAT = 1  # onnx.TensorProto.FLOAT: configurations, which import this, need no onnx


@dataclass(frozen=True, kw_only=True)
class NormAttributes(LayerAttributes):
    """The attributes of an ONNX normalization, defaults filled in: output = xhat * scale + bias, where
    xhat = (x - mean) / sqrt(variance + epsilon) does not depend on scale and bias.

    The scale is the weight: each of its elements is a layer with one input and one output.

    Attributes:
        epsilon: as above.
        stash_type: LayerNormalization, GroupNormalization: the ONNX type of mean and variance.
        training: BatchNormalization: mean and variance are those of the batch.
        statistics: BatchNormalization: the tensors mean and variance; () of others. Their names need not be those of
            the float model.
        scale_lies_on_last_axes: the scale is aligned with the last axes of the input; otherwise it has one element for
            each channel, or for each group of neighbours among them.
    """

    normalizes: ClassVar[bool] = True
    scale_lies_on_last_axes: ClassVar[bool] = False

    epsilon: float = 1e-5
    stash_type: int = _FLOAT
    training: bool = False
    statistics: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(cls, node: NodeParts) -> Self | None:
        given = node.given
        return cls(
            epsilon=given.get("epsilon", 1e-5), stash_type=given.get("stash_type", _FLOAT), **cls._own_fields(node)
        )

    @classmethod
    def _own_fields(cls, node: NodeParts) -> dict[str, Any]:
        return {}

    @abstractmethod
    def count_of_means(self, shape: Shape) -> int:
        """How many means and variances an input of that shape has; what is averaged lies side by side."""

    def channel_axis(self, rank: int) -> int:
        return 0

    def channels(self, shape: Shape) -> int:
        return math.prod(shape)

    def layout(self, shape: Shape) -> RowLayout:
        elements = math.prod(shape)
        return RowLayout((elements, 1), (0, 1), elements)

    def input_layout(self, shape: Shape) -> RowLayout:
        return self.layout(shape)

    def convolution(self, shape: Shape) -> ConvAttributes | None:
        """One group with one weight for each element of the scale."""
        return ConvAttributes(
            kernel_shape=(1,), strides=(1,), dilations=(1,), pads=(0, 0), auto_pad="NOTSET", group=math.prod(shape)
        )


@dataclass(frozen=True, kw_only=True)
class InstanceNormAttributes(NormAttributes):
    """The attributes of ONNX InstanceNormalization: each sample and channel has a mean of its own."""

    def count_of_means(self, shape: Shape) -> int:
        return math.prod(shape[:2])


@dataclass(frozen=True, kw_only=True)
class GroupNormAttributes(NormAttributes):
    """The attributes of ONNX GroupNormalization, with a scale per channel, or per group as in opset 18.

    Attributes:
        num_groups: each sample has so many means.
    """

    num_groups: int = 1

    @classmethod
    def _own_fields(cls, node: NodeParts) -> dict[str, Any]:
        return {"num_groups": node.given.get("num_groups", 1)}

    def count_of_means(self, shape: Shape) -> int:
        return shape[0] * self.num_groups


@dataclass(frozen=True, kw_only=True)
class LayerNormAttributes(NormAttributes):
    """The attributes of ONNX LayerNormalization, with any scale that differs along some axes and not along others.

    Attributes:
        axis: the first of the axes that mean and variance are taken over; may be negative.
    """

    scale_lies_on_last_axes: ClassVar[bool] = True

    axis: int = -1

    @classmethod
    def _own_fields(cls, node: NodeParts) -> dict[str, Any]:
        return {"axis": node.given.get("axis", -1)}

    def count_of_means(self, shape: Shape) -> int:
        return math.prod(shape[: self.axis])


@dataclass(frozen=True, kw_only=True)
class BatchNormAttributes(NormAttributes):
    """The attributes of ONNX BatchNormalization, whose mean and variance are inputs, but in training."""

    @classmethod
    def _own_fields(cls, node: NodeParts) -> dict[str, Any]:
        training = bool(node.given.get("training_mode", 0) or any(node.outputs[1:]))  # outputs: before opset 14
        return {"training": training, "statistics": tuple(node.inputs[3:5])}

    def count_of_means(self, shape: Shape) -> int:
        raise TypeError("BatchNormalization has the means of the training data")
