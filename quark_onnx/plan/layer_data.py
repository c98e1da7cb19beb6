"""The core's view of a layer: how rows are cut from its data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quark.onnx.graph.normalization import NormAttributes
from quark.onnx.graph.weight_layers import ConvAttributes, GemmAttributes
from quark.onnx.plan.output_stage import OutputStage

__all__ = ["core_geometry", "core_stage"]

_AUTO_PAD = {"NOTSET": 0, "SAME_UPPER": 1, "SAME_LOWER": 2, "VALID": 3}

Grid = tuple[float, int, int, int]
CoreStage = tuple[str, float, float, NDArray[np.float32] | None, int, bool, Grid | None]
ConvGeometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def core_geometry(attributes: ConvAttributes | GemmAttributes | NormAttributes) -> ConvGeometry | None:
    """The argument `conv` of `_core.Layer`; None for what is no convolution."""
    if not isinstance(attributes, ConvAttributes):
        return None
    a = attributes
    return a.kernel_shape, a.strides, a.dilations, a.pads, _AUTO_PAD[a.auto_pad]


def core_stage(stage: OutputStage | None) -> CoreStage | None:
    """The argument `stage` of `_core.TrainingData`."""
    if stage is None:
        return None
    f = stage.activation
    return f.kind, f.a, f.b, f.slopes, f.axis, stage.folded, stage.grid
