"""Run whole models, and tell whether two forms of one compute the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration.reader import Batch
from quark.onnx.inference import Engine, in_order, session

__all__ = ["outputs_of"]

Outputs = list[list[NDArray[np.generic]]]  # by batch, by model output


def outputs_of(model: onnx.ModelProto, batches: Sequence[Batch], engine: Engine, *, fuse_qdq: bool) -> Outputs:
    """All outputs of a model that are tensors, batch by batch."""
    at_once, each = engine.shared_out(len(batches))
    opened = session(model, each, fuse_qdq=fuse_qdq)

    def run(batch: Batch) -> list[NDArray[np.generic]]:
        values = zip(opened.get_outputs(), opened.run(None, batch), strict=True)
        return [value for output, value in values if output.type.startswith("tensor(")]

    return list(in_order(run, batches, threads=at_once))
