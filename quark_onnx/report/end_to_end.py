"""Compare a quantized model's outputs with the float model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration.reader import Batch
from quark.onnx.inference import Engine, in_order, session

__all__ = ["Deviation", "compare", "outputs_of"]

Outputs = list[list[NDArray[np.generic]]]  # by batch, by model output


@dataclass(frozen=True)
class Deviation:
    """How far the outputs of a quantized model are from the float model's.

    Attributes:
        l2: the L2 norm of the difference of all float outputs of one sample, mean over samples.
        sqnr_db: signal to quantization noise ratio of all float outputs, in dB; inf when there is no difference.
        agreement: share of samples with the same largest entry of the first output, 0 to 1; None where that output is
            not (samples, classes).
    """

    l2: float
    sqnr_db: float
    agreement: float | None


def outputs_of(model: onnx.ModelProto, batches: Sequence[Batch], engine: Engine, *, fuse_qdq: bool) -> Outputs:
    """All outputs of a model that are tensors, batch by batch."""
    at_once, each = engine.shared_out(len(batches))
    opened = session(model, each, fuse_qdq=fuse_qdq)

    def run(batch: Batch) -> list[NDArray[np.generic]]:
        values = zip(opened.get_outputs(), opened.run(None, batch), strict=True)
        return [value for output, value in values if output.type.startswith("tensor(")]

    return list(in_order(run, batches, threads=at_once))


def compare(reference: Outputs, outputs: Outputs) -> Deviation:
    """The deviation of `outputs` from `reference`, of the same model inputs."""
    squared, signal, norms, same, counted = 0.0, 0.0, [], 0, 0
    for want, have in zip(reference, outputs, strict=True):
        difference = [_rows(h) - _rows(w) for w, h in zip(want, have, strict=True) if w.dtype.kind == "f"]
        signal += sum(float((_rows(w) ** 2).sum()) for w in want if w.dtype.kind == "f")
        squared += sum(float((d**2).sum()) for d in difference)
        if difference and all(len(d) == len(difference[0]) for d in difference):
            norms.extend(np.sqrt(sum((d**2).sum(axis=1) for d in difference)))
        else:  # outputs that count something else than samples
            norms.append(np.sqrt(sum((d**2).sum() for d in difference)))
        if want and want[0].ndim == 2 and want[0].shape[1] > 1 and want[0].dtype.kind == "f":
            same += int((want[0].argmax(axis=1) == have[0].argmax(axis=1)).sum())
            counted += len(want[0])
    return Deviation(
        l2=float(np.mean(norms)) if norms else 0.0,
        sqnr_db=_decibels(signal, squared),
        agreement=same / counted if counted else None,
    )


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")


def _rows(array: NDArray[np.generic]) -> NDArray[np.float64]:
    count = len(array) if array.ndim else 1
    return array.reshape(count, array.size // max(count, 1)).astype(
        np.float64
    )  # (0, 5), too, which (0, -1) would not do
