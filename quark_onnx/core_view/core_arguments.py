"""The core's view of a layer: how rows are cut from its data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quark.onnx.core_view.output_stage import OutputStage

__all__ = ["core_stage"]

Grid = tuple[float, int, int, int]
CoreStage = tuple[str, float, float, NDArray[np.float32] | None, int, bool, Grid | None]


def core_stage(stage: OutputStage | None) -> CoreStage | None:
    """The argument `stage` of `_core.TrainingData`."""
    if stage is None:
        return None
    f = stage.activation
    return f.kind, f.a, f.b, f.slopes, f.axis, stage.folded, stage.grid
