"""What a run has at hand wherever it compares whole models."""

from __future__ import annotations

from dataclasses import dataclass

from quark.onnx.inference.sessions import Engine
from quark.onnx.stores.batch_store import BatchStore
from quark.onnx.whole_model.set_apart import SetApart

__all__ = ["Workplace"]


@dataclass(frozen=True, eq=False)
class Workplace:
    """What all steps of a run share.

    Attributes:
        engine: runs all models of the run.
        store: holds tensors of the samples.
        apart: takes the samples that whole models are compared on out of the calibration items.
    """

    engine: Engine
    store: BatchStore
    apart: SetApart
