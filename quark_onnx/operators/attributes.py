"""What a layer's node says of how it computes, in answers that are the same questions for every operator.

A class for each family of operators gives its own answers, so that nobody else has to tell the families apart.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from quark.onnx.operators.row_layout import RowLayout

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "MAX_SPATIAL", "ConvAttributes", "ConvGeometry", "ConvTransposeAttributes", "GemmAttributes", "LayerAttributes",
    "MatMulAttributes", "NodeParts",
]  # fmt: skip

MAX_SPATIAL = 3  # axes of a Conv, as in the core

_REACH = 2**31  # of strides, dilations and pads in the core
_AUTO_PAD = {"NOTSET": 0, "SAME_UPPER": 1, "SAME_LOWER": 2, "VALID": 3}  # csrc/include/qk.h

Shape = tuple[int, ...]
ConvGeometry = tuple[Shape, Shape, Shape, Shape, int] | tuple[Shape, Shape, Shape, Shape, int, Shape, Shape | None]


class NodeParts(NamedTuple):
    """The parts of a node that its attributes are read from.

    Attributes:
        given: the node's attributes by name.
        weight_shape: the shape of the weight's initializer.
        weight_input: the input that is the weight.
        inputs, outputs: the names of the node's tensors.
    """

    given: Mapping[str, Any]
    weight_shape: Shape
    weight_input: int = 1
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()


class LayerAttributes(ABC):
    """The attributes of a layer's node, defaults filled in. The output is factor * (W x) + bias_factor * bias.

    Attributes:
        normalizes: W is applied to the input normalized.
        channels_last: the last axis counts channels, as in a matrix product; otherwise it is the second.
    """

    normalizes: ClassVar[bool] = False
    channels_last: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def read(cls, node: NodeParts) -> Self | None:
        """The attributes of a node; None where the node is no layer that can be carried out."""

    @abstractmethod
    def channel_axis(self, rank: int) -> int:
        """The axis of a weight of so many axes that counts output channels, not negative."""

    @abstractmethod
    def input_layout(self, shape: Shape) -> RowLayout:
        """How a weight of that shape becomes rows, one for each input channel of all groups."""

    def layout(self, shape: Shape) -> RowLayout:
        """How a weight of that shape becomes rows, one for each output of all groups."""
        channels = self.channels(shape)
        if self.channel_axis(len(shape)) == 0:
            return RowLayout((channels, math.prod(shape[1:])), (0, 1), channels)
        return RowLayout((math.prod(shape[:-1]), channels), (1, 0), channels)

    def channels(self, shape: Shape) -> int:
        """How many scales a weight of that shape may have; the groups of a ConvTranspose share them."""
        return shape[self.channel_axis(len(shape))]

    def is_stack(self, shape: Shape) -> bool:
        """Whether the weight is several matrices, each with an input of its own."""
        return False

    def convolution(self, shape: Shape) -> ConvAttributes | None:
        """The convolution that the core sees in the layer, or None where it sees a matrix product."""
        return None

    def without_bias_factor(self) -> LayerAttributes:
        """What a float and a quantized layer share: onnxruntime moves the factor into the scale of the bias."""
        return self

    @property
    def groups(self) -> int:
        """The groups that the channels are divided into."""
        return 1

    @property
    def factor(self) -> float:
        """The factor of the product."""
        return 1.0

    @property
    def bias_factor(self) -> float:
        """The factor of the bias."""
        return 1.0

    @property
    def transposes_input(self) -> bool:
        """Whether the input is (K, rows)."""
        return False

    @property
    def comes_first(self) -> bool:
        """Whether the weight is the first input: then input and output are (..., K, rows) and (..., outputs, rows)."""
        return False

    @property
    def axes_behind_channels(self) -> int:
        """How many axes of the output lie behind the one that counts channels."""
        return 0


@dataclass(frozen=True, kw_only=True)
class ConvAttributes(LayerAttributes):
    """The attributes of ONNX Conv, defaults filled in; one entry per spatial dimension.

    Attributes:
        kernel_shape: taken from the weight.
        strides: defaults to ones.
        dilations: defaults to ones.
        pads: the starts of all dimensions, then the ends; zeros unless auto_pad is "NOTSET".
        auto_pad: "NOTSET", "VALID", or "SAME_UPPER" and "SAME_LOWER", which depend on the input's size.
        group: the number of groups.
    """

    kernel_shape: Shape
    strides: Shape
    dilations: Shape
    pads: Shape
    auto_pad: str
    group: int

    @classmethod
    def read(cls, node: NodeParts) -> Self | None:
        if not 1 <= len(node.weight_shape) - 2 <= MAX_SPATIAL:
            return None
        found = cls(**cls._fields(node.given, node.weight_shape[2:]))
        return found if found._is_in_reach(node.weight_shape) else None

    @classmethod
    def _fields(cls, given: Mapping[str, Any], kernel_shape: Shape) -> dict[str, Any]:
        ones = (1,) * len(kernel_shape)
        auto_pad = given.get("auto_pad", b"").decode(errors="replace") or "NOTSET"  # as onnxruntime takes it
        explicit_pads = tuple(given.get("pads", ())) if auto_pad == "NOTSET" else ()
        return {
            "kernel_shape": kernel_shape,
            "strides": tuple(given.get("strides", ones)),
            "dilations": tuple(given.get("dilations", ones)),
            "pads": explicit_pads or (0, 0) * len(kernel_shape),
            "auto_pad": auto_pad,
            "group": given.get("group", 1),
        }

    def _is_in_reach(self, shape: Shape) -> bool:
        """Whether it can be carried out, with numbers that the core counts with."""
        axes = len(self.kernel_shape)
        return (
            len(self.strides) == len(self.dilations) == axes
            and len(self.pads) == 2 * axes
            and self.auto_pad in _AUTO_PAD
            and all(0 < step < _REACH for step in (*self.strides, *self.dilations))
            and all(-_REACH < edge < _REACH for edge in self._edges)
            and self.group > 0
            and shape[0] % self.group == 0
        )

    @property
    def _edges(self) -> Shape:
        return self.pads

    def channel_axis(self, rank: int) -> int:
        return 0

    def input_layout(self, shape: Shape) -> RowLayout:
        parts = (self.group, shape[0] // self.group, shape[1], math.prod(shape[2:]))
        return RowLayout(parts, (0, 2, 1, 3), self.group * shape[1])

    def convolution(self, shape: Shape) -> ConvAttributes | None:
        return self

    def core_geometry(self) -> ConvGeometry:
        """The argument `conv` of `_core.Layer`."""
        return self.kernel_shape, self.strides, self.dilations, self.pads, _AUTO_PAD[self.auto_pad]

    @property
    def groups(self) -> int:
        return self.group

    @property
    def axes_behind_channels(self) -> int:
        return len(self.kernel_shape)


@dataclass(frozen=True, kw_only=True)
class ConvTransposeAttributes(ConvAttributes):
    """The attributes of ONNX ConvTranspose: those of Conv, and what chooses among the outputs that there could be.

    Attributes:
        output_padding: more outputs at the end; defaults to zeros.
        output_shape: the size of each spatial dimension, in place of the pads; None where it is not given.
    """

    output_padding: Shape
    output_shape: Shape | None

    @classmethod
    def _fields(cls, given: Mapping[str, Any], kernel_shape: Shape) -> dict[str, Any]:
        return {
            **super()._fields(given, kernel_shape),
            "output_padding": tuple(given.get("output_padding", ())) or (0,) * len(kernel_shape),
            "output_shape": tuple(given.get("output_shape", ())) or None,
        }

    @property
    def _edges(self) -> Shape:
        return (*self.pads, *self.output_padding, *(self.output_shape or ()))

    def channel_axis(self, rank: int) -> int:
        return 1

    def layout(self, shape: Shape) -> RowLayout:
        channels = self.channels(shape)
        parts = (self.group, shape[0] // self.group, channels, math.prod(shape[2:]))
        return RowLayout(parts, (0, 2, 1, 3), self.group * channels)

    def input_layout(self, shape: Shape) -> RowLayout:
        return RowLayout((shape[0], math.prod(shape[1:])), (0, 1), shape[0])

    def core_geometry(self) -> ConvGeometry:
        auto_pad = _AUTO_PAD[self.auto_pad]
        return (
            *(self.kernel_shape, self.strides, self.dilations, self.pads),
            *(auto_pad, self.output_padding, self.output_shape),
        )


@dataclass(frozen=True, kw_only=True)
class GemmAttributes(LayerAttributes):
    """The attributes of ONNX Gemm, defaults filled in."""

    channels_last: ClassVar[bool] = True

    alpha: float = 1.0
    beta: float = 1.0
    trans_a: bool = False
    trans_b: bool = False

    @classmethod
    def read(cls, node: NodeParts) -> Self | None:
        given = node.given
        return cls(
            alpha=given.get("alpha", 1.0),
            beta=given.get("beta", 1.0),
            trans_a=bool(given.get("transA", 0)),
            trans_b=bool(given.get("transB", 0)),
        )

    def channel_axis(self, rank: int) -> int:
        return 0 if self.trans_b else 1

    def input_layout(self, shape: Shape) -> RowLayout:
        if self.trans_b:
            return RowLayout(shape, (1, 0), shape[1])
        return RowLayout(shape, (0, 1), shape[0])

    def without_bias_factor(self) -> LayerAttributes:
        return replace(self, beta=1.0)

    @property
    def factor(self) -> float:
        return self.alpha

    @property
    def bias_factor(self) -> float:
        return self.beta

    @property
    def transposes_input(self) -> bool:
        return self.trans_a


@dataclass(frozen=True, kw_only=True)
class MatMulAttributes(LayerAttributes):
    """ONNX MatMul has no attributes; either of its inputs may be the weight.

    Attributes:
        weight_first: the first input is the weight: output = W x.
    """

    channels_last: ClassVar[bool] = True

    weight_first: bool = False

    @classmethod
    def read(cls, node: NodeParts) -> Self | None:
        return cls(weight_first=node.weight_input == 0) if len(node.weight_shape) > 1 else None

    def channel_axis(self, rank: int) -> int:
        return rank - (2 if self.weight_first else 1)

    def input_layout(self, shape: Shape) -> RowLayout:
        if self.channel_axis(len(shape)) == 0:
            return RowLayout(shape, (1, 0), shape[1])
        return RowLayout((math.prod(shape[:-2]), *shape[-2:]), (1, 0, 2), shape[-2])

    def is_stack(self, shape: Shape) -> bool:
        return len(shape) > 2

    @property
    def comes_first(self) -> bool:
        return self.weight_first

    @property
    def axes_behind_channels(self) -> int:
        return 1 if self.weight_first else 0
