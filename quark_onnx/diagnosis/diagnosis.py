"""What `analyse` finds: plain data, frozen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quark.onnx.report.plain_data import to_plain

__all__ = ["Cure", "Diagnosis", "Finding"]

_CERTAIN = 3  # standard errors
_FEWEST = 3  # pairs that a rank correlation says anything of


@dataclass(frozen=True)
class Cure:
    """One way to take a quantizer's harm away. Errors are mean squared error over variance, the mean of all outputs.

    Attributes:
        name: "float"; "16 bits" of an activation, over the same range; "per channel" of a weight.
        predicted: how much less error the model should have, by what the quantizer does alone, as if the errors of all
            added up, element by element: below 0 where others make up for this one.
        measured: how much less it has, with everything else quantized.
        standard_error: of `measured`, from how it differs between samples. What is not three times as large is chance:
            another rounding behind the quantizer would do as much.
    """

    name: str
    predicted: float
    measured: float
    standard_error: float = 0.0

    @property
    def is_certain(self) -> bool:
        """Whether what was measured is beyond chance."""
        return abs(self.measured) > _CERTAIN * self.standard_error


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One quantizer: of an activation (of all that share its scale), or of the weight and bias of a layer.

    Attributes:
        name: of the first tensor; of the layer.
        kind: "activation" or "weights".
        tensors: of the float model.
        share: of all values that go through quantizers of that kind, 0 to 1.
        alone: the error that the model has with this quantizer alone, in units of `Cure`.
        gain: what the model should gain with it in float, as `Cure.predicted`.
        cures: those that keep integers first; none where they were not measured.
        facts: what may be the reason.
    """

    name: str
    kind: str
    tensors: tuple[str, ...]
    share: float
    alone: float
    gain: float
    cures: tuple[Cure, ...] = ()
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What each quantizer does to the outputs of a model.

    Attributes:
        samples: that were run.
        error: of the whole quantized model: mean squared error over variance, the mean of all outputs.
        activations, weights: of the float model with only these quantized.
        findings: first those whose cures were measured, by what floats there gained; then the others by what they
            should gain. Of a model that is destroyed, where errors do not add up, those with the most error alone were
            measured.
        cured: the error with `cures`, all at once; `error` where none helps.
        cures: names of finding and cure, of the worst findings: the mildest that takes nearly all of the harm away.
        notes: what was not looked at, and why.
    """

    samples: int
    error: float
    activations: float
    weights: float
    findings: tuple[Finding, ...]
    cured: float
    cures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between what the model should gain with quantizers in float and what it gains, of those whose
        gain is beyond chance; NaN for fewer than three of them. 1: the prediction ranks them as measuring does.
        """
        certain = ((f, c) for f in self.findings for c in f.cures if c.name == "float" and c.is_certain)
        gains = ((f.gain, c.measured) for f, c in certain)
        return _spearman([pair for pair in gains if all(map(math.isfinite, pair))])

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number is None."""
        plain: dict[str, Any] = to_plain(self) | to_plain({"rank_correlation": self.rank_correlation})
        return plain


def _spearman(pairs: list[tuple[float, float]]) -> float:
    if len(pairs) < _FEWEST:
        return math.nan
    ranks = [np.argsort(np.argsort(values)).astype(float) for values in zip(*pairs, strict=True)]
    return float(np.corrcoef(ranks)[0, 1])
