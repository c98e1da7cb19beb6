"""Normalization layers: what the nodes say of how they normalize."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import onnx

__all__ = ["NORMALIZATIONS", "NORM_ATTRIBUTES", "NormAttributes", "norm_attributes"]

NORM_ATTRIBUTES = {
    "BatchNormalization": ("epsilon", "momentum", "training_mode"),
    "GroupNormalization": ("epsilon", "num_groups", "stash_type"),
    "InstanceNormalization": ("epsilon",),
    "LayerNormalization": ("axis", "epsilon", "stash_type"),
}
NORMALIZATIONS = tuple(NORM_ATTRIBUTES)


@dataclass(frozen=True, kw_only=True)
class NormAttributes:
    """The attributes of an ONNX normalization, defaults filled in: output = xhat * scale + bias, where
    xhat = (x - mean) / sqrt(variance + epsilon) does not depend on scale and bias.

    Attributes:
        epsilon: as above.
        axis: LayerNormalization: the first of the axes that mean and variance are taken over; may be negative.
        groups: GroupNormalization: num_groups.
        stash_type: LayerNormalization, GroupNormalization: ONNX type of mean and variance.
        training: BatchNormalization: mean and variance are those of the batch.
        statistics: BatchNormalization: the tensors mean and variance; () of others. Their names need not be those of
            the float model.
    """

    epsilon: float = 1e-5
    axis: int = -1
    groups: int = 1
    stash_type: int = onnx.TensorProto.FLOAT
    training: bool = False
    statistics: tuple[str, ...] = field(default=(), compare=False)


def norm_attributes(node: onnx.NodeProto, given: dict[str, Any]) -> NormAttributes:
    """The attributes of one of the `NORMALIZATIONS`.

    Args:
        given: the node's attributes by name.
    """
    batch = node.op_type == "BatchNormalization"
    return NormAttributes(
        epsilon=given.get("epsilon", 1e-5),
        axis=given.get("axis", -1),
        groups=given.get("num_groups", 1),
        stash_type=given.get("stash_type", onnx.TensorProto.FLOAT),
        training=batch and bool(given.get("training_mode", 0) or any(node.output[1:])),  # outputs: before opset 14
        statistics=tuple(node.input[3:5]) if batch else (),
    )
