"""Find the layers with a constant weight in a prepared float model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

__all__ = ["ConvAttributes", "GemmAttributes", "WeightLayer", "weight_layers"]


@dataclass(frozen=True)
class ConvAttributes:
    """The attributes of ONNX Conv, defaults filled in; one entry per spatial dimension.

    Attributes:
        kernel_shape: taken from the weight.
        pads: starts of all dimensions, then ends; zeros unless `auto_pad` is "NOTSET".
    """

    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]
    group: int


@dataclass(frozen=True)
class GemmAttributes:
    """The attributes of ONNX Gemm; MatMul has the defaults."""

    alpha: float = 1.0
    beta: float = 1.0
    trans_a: bool = False
    trans_b: bool = False


@dataclass(frozen=True)
class WeightLayer:
    """One node that is linear in a float32 initializer.

    Attributes:
        node_name: unique in a prepared model.
        op_type: "Conv" (1-D or 2-D), "Gemm" or "MatMul".
        weight: name of the weight initializer; several layers may share it.
        weight_shape: Conv: (outputs, inputs / group, *kernel). Gemm: (inputs, outputs), the other way round if
            trans_b. MatMul: (..., inputs, outputs).
        bias: name of the bias, a float32 initializer, or None.
        has_dynamic_bias: the node adds a third input that is not constant.
        input: name of the tensor that the weight is applied to.
        output: name of the node's output.
        channel_axis: the axis of the weight that counts output channels, not negative.
        attributes: of the node.
    """

    node_name: str
    op_type: Literal["Conv", "Gemm", "MatMul"]
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    has_dynamic_bias: bool
    input: str
    output: str
    channel_axis: int
    attributes: ConvAttributes | GemmAttributes


def weight_layers(model: onnx.ModelProto) -> tuple[WeightLayer, ...]:
    """The Conv (1-D, 2-D), Gemm and MatMul nodes whose second input is a float32 initializer, in graph order.

    A weight that two nodes share is listed for each of them.

    Args:
        model: a prepared model; nodes inside subgraphs are not looked at.
    """
    constants = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    layers = []
    for node in model.graph.node:
        ...
    return tuple(layers)
