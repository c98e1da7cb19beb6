"""The core's view of a layer: how rows are cut from its data."""

from __future__ import annotations

from quark.onnx.graph.weight_layers import ConvAttributes, GemmAttributes

__all__ = ["core_geometry"]

_AUTO_PAD = {"NOTSET": 0, "SAME_UPPER": 1, "SAME_LOWER": 2, "VALID": 3}

ConvGeometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def core_geometry(attributes: ConvAttributes | GemmAttributes) -> ConvGeometry | None:
    """The argument `conv` of `_core.Layer`; None for matrix products."""
    if isinstance(attributes, GemmAttributes):
        return None
    a = attributes
    return a.kernel_shape, a.strides, a.dilations, a.pads, _AUTO_PAD[a.auto_pad]
