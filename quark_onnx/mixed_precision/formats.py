"""The formats of single tensors, beside those of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quark.onnx.config.spec import QTensorConfig

__all__ = ["Formats"]


@dataclass(frozen=True)
class Formats:
    """Specs by the names of the tensors in the prepared model.

    Attributes:
        weights: of weights.
        activations: of activations; None: in float.
        opset: the first that has all formats that may be tried: the model is prepared at it, whichever are chosen.
    """

    weights: Mapping[str, QTensorConfig] = field(default_factory=dict)
    activations: Mapping[str, QTensorConfig | None] = field(default_factory=dict)
    opset: int = 0
