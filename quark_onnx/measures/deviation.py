"""How far the outputs of a quantized model are from the float model's: every output by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quark.onnx.measures.chance import standard_errors

__all__ = ["Comparison", "Deviation", "OutputDeviation", "compare"]

LOST = 0.5  # of the variance: an output with more error says little, one with 1 as much as a constant
_CERTAIN = 3.0  # standard errors
_MUCH = 1.1  # of the error, as L2
_FEW = 4  # samples that give no standard error worth the name

Outputs = Sequence[Any]  # of one batch: arrays, or what onnxruntime gives for outputs that are no tensors
Parts = Mapping[str, NDArray[np.bool_]]  # of an output: which of its elements belong to each


@dataclass(frozen=True)
class OutputDeviation:
    """One float output, or a part of it.

    Attributes:
        name: of the output; of the tensor that the part comes from.
        l2: the L2 norm of the difference of one sample, mean over samples.
        sqnr_db: power of the float output over power of the difference, in dB; inf without a difference.
        error: mean squared difference over the variance of the float output (over its power where it does not vary):
            0 is right, 1 is as bad as a constant. Of several parts their mean. NaN where the float output is 0.
        parts: of an output that Concat makes of several tensors: each tensor's share.
    """

    name: str
    l2: float
    sqnr_db: float
    error: float
    parts: tuple[OutputDeviation, ...] = ()

    @property
    def lost(self) -> tuple[OutputDeviation, ...]:
        """The parts, or else this output, of which next to nothing is left."""
        return tuple(one for one in self.parts or (self,) if one.error > LOST)


@dataclass(frozen=True)
class Deviation:
    """How far the outputs of a quantized model are from the float model's.

    Attributes:
        l2: the L2 norm of the difference of all float outputs of one sample, mean over samples.
        sqnr_db: signal to quantization noise ratio in dB: of the mean over float outputs (and their parts) of noise
            over signal, so that no output hides another; inf when there is no difference.
        agreement: share of samples with the same largest entry of the first output, 0 to 1; None where that output is
            not (samples, classes).
        error: mean over float outputs of `OutputDeviation.error`, by which one state of a model is better than another.
        outputs: every float output by itself.
    """

    l2: float
    sqnr_db: float
    agreement: float | None
    error: float = 0.0
    outputs: tuple[OutputDeviation, ...] = ()


class _Sums:
    """What is gathered of one output, or of one part: noise per sample, and the float values' moments."""

    def __init__(self) -> None:
        self.noise: list[NDArray[np.float64]] = []
        self._count, self._sum, self._square = 0, 0.0, 0.0

    def add(self, want: NDArray[np.float64], noise: NDArray[np.float64], own: NDArray[np.bool_]) -> None:
        """Rows of a batch: float values, squared differences, and which elements count."""
        self.noise.append(
            (noise * own).sum(axis=1) if np.isfinite(noise).all() else np.where(own, noise, 0).sum(axis=1)
        )
        values = want[own]
        self._count += values.size
        self._sum += float(values.sum())
        self._square += float((values**2).sum())

    @property
    def variance(self) -> float:
        """Return the variance of the float values times their number; where they do not vary, their power."""
        variance = self._square - self._sum**2 / self._count if self._count else 0.0
        return variance if variance > 1e-12 * self._square else self._square

    def shares(self) -> tuple[float, float]:
        """Noise over variance, and noise over power; NaN where there is no signal."""
        noise = float(sum(rows.sum() for rows in self.noise))
        return tuple(noise / signal if signal > 0 else math.nan for signal in (self.variance, self._square))  # type: ignore[return-value]

    def errors(self, *, of_samples: bool) -> NDArray[np.float64]:
        """Noise of every sample, or of every batch, over the mean variance of one: the mean is that of `shares`."""
        noise = np.concatenate(self.noise) if of_samples else np.array([rows.sum() for rows in self.noise])
        if self.variance > 0:
            return noise * (len(noise) / self.variance)
        return np.where(noise > 0, math.inf, 0.0)  # of a constant 0, any noise is too much

    @property
    def l2(self) -> float:
        """Mean norm."""
        return float(np.sqrt(np.concatenate(self.noise)).mean()) if sum(map(len, self.noise)) else 0.0


class Comparison:
    """Gathers batches of outputs. Only sums are kept.

    Args:
        names: of the model's outputs.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = names
        self._outputs: dict[int, _Sums] = {}
        self._parts: dict[int, dict[str, _Sums]] = {}
        self._together: list[NDArray[np.float64]] = []
        self._same = self._counted = 0

    def add(self, reference: Outputs, outputs: Outputs, parts: Mapping[int, Parts] | None = None) -> None:
        """A batch: what the float model gives, and what the other does; arrays of floats count.

        Args:
            parts: of outputs, by position: masks of the output's shape.
        """
        norms = list[NDArray[np.float64]]()
        for index, (want, have) in enumerate(zip(reference, outputs, strict=True)):
            if not (isinstance(want, np.ndarray) and want.dtype.kind == "f"):
                continue
            rows, noise, finite = _difference(want, have)
            self._outputs.setdefault(index, _Sums()).add(rows, noise, finite)
            norms.append(noise.sum(axis=1))
            for name, mask in (parts or {}).get(index, {}).items():
                sums = self._parts.setdefault(index, {}).setdefault(name, _Sums())
                sums.add(rows, noise, finite & mask.reshape(rows.shape))
        norms = [rows for rows in norms if len(rows)]  # no row: an empty output
        if norms and all(len(rows) == len(norms[0]) for rows in norms):
            self._together.append(np.sqrt(sum(norms)))
        elif norms:  # outputs that count something else than samples
            self._together.append(np.sqrt([sum(float(rows.sum()) for rows in norms)]))
        self._add_agreement(reference[0], outputs[0])

    def _add_agreement(self, want: Any, have: Any) -> None:
        is_classes = isinstance(want, np.ndarray) and want.dtype.kind == "f" and want.ndim == 2 and want.shape[1] > 1
        if is_classes and len(want):
            self._same += int((want.argmax(axis=1) == have.argmax(axis=1)).sum())
            self._counted += len(want)

    def deviation(self) -> Deviation:
        """The deviation over all batches so far."""
        found = [self._output(index) for index in sorted(self._outputs)]
        shares = [share for share, _ in found if not math.isnan(share)]
        noise = any(output.l2 > 0 for _, output in found)
        # An output that is constant has no error of its own: alone, it counts as soon as there is noise.
        errors = [output.error for _, output in found if not math.isnan(output.error)] or [math.inf if noise else 0.0]
        return Deviation(
            l2=float(np.concatenate(self._together).mean()) if self._together else 0.0,
            sqnr_db=_decibels(_mean(shares) if shares else (math.inf if noise else 0.0)),
            agreement=self._same / self._counted if self._counted else None,
            error=_mean(errors),
            outputs=tuple(output for _, output in found),
        )

    def _output(self, index: int) -> tuple[float, OutputDeviation]:
        """Noise over power, and all that is said of an output."""
        sums, name = self._outputs[index], self._name(index)
        parts = [(share, _deviation(part, key, share, error)) for key, part in self._parts.get(index, {}).items()
                 for error, share in [part.shares()]]  # fmt: skip
        parts = [(share, part) for share, part in parts if not math.isnan(share)]
        error, share = sums.shares()
        if parts:
            share, error = _mean([share for share, _ in parts]), _mean([part.error for _, part in parts])
        return share, _deviation(sums, name, share, error, tuple(part for _, part in parts))

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else str(index)

    def sample_errors(self, output: str | None = None) -> NDArray[np.float64]:
        """The error of every sample: its mean is the `error` of the deviation, or of one output by name.

        Where an output has not one row for each sample, an entry is the error of a batch.
        """
        chosen = [index for index in self._outputs if output is None or self._name(index) == output]
        outputs = [[sums for sums in self._tensors(index) if sums.variance > 0] for index in chosen]
        outputs = [sums for sums in outputs if sums] or [self._tensors(index) for index in chosen]
        of_samples = len({tuple(map(len, sums.noise)) for tensors in outputs for sums in tensors}) == 1
        errors = [np.mean([sums.errors(of_samples=of_samples) for sums in tensors], axis=0) for tensors in outputs]
        most = max(map(len, errors), default=0)  # an output that some batch could not be compared in has fewer
        return np.asarray(np.mean([found for found in errors if len(found) == most], axis=0)) if most else np.zeros(0)

    def _tensors(self, index: int) -> list[_Sums]:
        """The parts of an output, or else itself."""
        return list(self._parts.get(index, {}).values()) or [self._outputs[index]]

    def beyond_chance(self, other: Comparison) -> tuple[str, ...]:
        """The outputs in which this one, of the same samples, is worse than another: by a tenth, and by three standard
        errors of the difference between samples.
        """
        return tuple(
            self._name(index)
            for index, sums in self._outputs.items()
            if _is_beyond_chance(np.concatenate(sums.noise), np.concatenate(other._outputs[index].noise))
        )


def compare(reference: Sequence[Outputs], outputs: Sequence[Outputs]) -> Deviation:
    """The deviation of `outputs` from `reference`, by batch and by output, of the same model inputs."""
    comparison = Comparison()
    for want, have in zip(reference, outputs, strict=True):
        comparison.add(want, have)
    return comparison.deviation()


def _is_beyond_chance(worse: NDArray[np.float64], better: NDArray[np.float64]) -> bool:
    if not len(worse) or not worse.mean() > _MUCH**2 * better.mean():
        return False
    if len(worse) < _FEW:
        return bool(worse.mean() > (1 + _CERTAIN) * better.mean())
    return standard_errors(worse, better) > _CERTAIN


def _difference(want: Any, have: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """The float values and squared differences as rows, and where the float values are finite: others do not count."""
    wanted, given = _rows(want), _rows(have)
    finite = np.isfinite(wanted)
    with np.errstate(invalid="ignore", over="ignore"):
        noise = np.where(finite, given - wanted, 0.0) ** 2
    noise[np.isnan(noise)] = math.inf
    return np.where(finite, wanted, 0.0), noise, finite


def _deviation(
    sums: _Sums, name: str, share: float, error: float, parts: tuple[OutputDeviation, ...] = ()
) -> OutputDeviation:
    if math.isnan(share):
        share = math.inf if sums.l2 > 0 else 0.0
    return OutputDeviation(name=name, l2=sums.l2, sqnr_db=_decibels(share), error=error, parts=parts)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _decibels(share: float) -> float:
    """SQNR in dB, from the share of noise in the signal."""
    if share == 0:
        return math.inf
    return -math.inf if share == math.inf else float(-10 * np.log10(share))


def _rows(array: NDArray[np.generic]) -> NDArray[np.float64]:
    count = len(array) if array.ndim else 1
    return array.reshape(count, array.size // max(count, 1)).astype(np.float64)  # -1 would not do for (0, 5)
