"""Where the error of a layer's output comes from: what it inherits with its input, and what it adds itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["LayerError", "decibels"]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """One quantized layer against the float model. Errors are noise over signal power: 0 is right, 1 is 0 dB; NaN where
    the two tensors cannot be compared, or the float one is 0.

    Attributes:
        name, op_type: of the node in the quantized model.
        input: the tensor of the float model that feeds it.
        weight_bits: of its weight; 32 where that is no constant integer.
        weight_scales: how many scales its weight has: 1 is one for the whole tensor.
        inherited: of its input, as the quantized model computes it.
        total: of its output before its activation, as the quantized model computes it.
        own: of that output where this layer alone is quantized: the float model's values go through the quantizer of
            its input, its integer weight and its bias.
        weights: of that output where only the layer's weight and bias are integers; the rest of `own` is its input's.
        samples: that were compared.
    """

    name: str
    op_type: str
    input: str
    weight_bits: int
    weight_scales: int
    inherited: float
    total: float
    own: float
    weights: float
    samples: int

    @property
    def input_db(self) -> float:
        """SQNR of its input in dB."""
        return decibels(self.inherited)

    @property
    def output_db(self) -> float:
        """SQNR of its output in dB."""
        return decibels(self.total)

    @property
    def own_db(self) -> float:
        """SQNR in dB of its output where it alone is quantized."""
        return decibels(self.own)


def decibels(share: float) -> float:
    """SQNR in dB, from noise over signal: inf without noise, NaN where nothing is known."""
    if math.isnan(share):
        return math.nan
    if share == 0:
        return math.inf
    return -math.inf if math.isinf(share) else -10 * math.log10(share)
