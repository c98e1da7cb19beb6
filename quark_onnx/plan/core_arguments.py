"""The core's view of a layer: how rows are cut from its data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quark.onnx.layers.normalization import NormAttributes
from quark.onnx.layers.weight_layers import ConvAttributes, ConvTransposeAttributes, GemmAttributes
from quark.onnx.plan.output_stage import OutputStage

__all__ = ["core_geometry", "core_stage"]

_AUTO_PAD = {"NOTSET": 0, "SAME_UPPER": 1, "SAME_LOWER": 2, "VALID": 3}

Grid = tuple[float, int, int, int]
CoreStage = tuple[str, float, float, NDArray[np.float32] | None, int, bool, Grid | None]
_Sizes = tuple[int, ...]
ConvGeometry = (
    tuple[_Sizes, _Sizes, _Sizes, _Sizes, int] | tuple[_Sizes, _Sizes, _Sizes, _Sizes, int, _Sizes, _Sizes | None]
)


def core_geometry(attributes: ConvAttributes | GemmAttributes | NormAttributes) -> ConvGeometry | None:
    """The argument `conv` of `_core.Layer`; None for what is no convolution."""
    if not isinstance(attributes, ConvAttributes):
        return None
    a, auto_pad = attributes, _AUTO_PAD[attributes.auto_pad]
    if isinstance(a, ConvTransposeAttributes):
        return a.kernel_shape, a.strides, a.dilations, a.pads, auto_pad, a.output_padding, a.output_shape
    return a.kernel_shape, a.strides, a.dilations, a.pads, auto_pad


def core_stage(stage: OutputStage | None) -> CoreStage | None:
    """The argument `stage` of `_core.TrainingData`."""
    if stage is None:
        return None
    f = stage.activation
    return f.kind, f.a, f.b, f.slopes, f.axis, stage.folded, stage.grid
