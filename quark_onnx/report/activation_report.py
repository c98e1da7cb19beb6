"""The values of one activation on the calibration data, and the range that its integers cover."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import onnx

from quark.onnx.calibration.value_histogram import ValueHistogram
from quark.onnx.core_view.quantizers import INTEGERS, dequantize_parameters
from quark.onnx.graph.dataflow import Dataflow

__all__ = ["ActivationReport", "activation_reports"]


@dataclass(frozen=True, kw_only=True)
class ActivationReport:
    """One quantized activation.

    Attributes:
        name: of the tensor in the float model.
        low, high: the smallest and the largest value seen.
        range_low, range_high: what the quantizer covers; values outside are cut off.
        clipped: share of the values seen outside of that range, 0 to 1, to the width of a bin of calibration.
        counts: a histogram of the values seen, in bins of equal width from `low` to `high`.
    """

    name: str
    low: float
    high: float
    range_low: float
    range_high: float
    clipped: float
    counts: tuple[int, ...]

    @property
    def reach(self) -> float:
        """The largest absolute value of the range."""
        return max(abs(self.range_low), abs(self.range_high))

    @property
    def usual(self) -> float:
        """The smallest bound that the absolute values of 99.9 % of all values keep, to the width of a bin."""
        total, width = sum(self.counts), self.bin_width
        if not total:
            return 0.0
        bins = sorted(
            (max(abs(self.low + index * width), abs(self.low + (index + 1) * width)), count)
            for index, count in enumerate(self.counts)
        )
        sums = accumulate(count for _, count in bins)
        return next(edge for (edge, _), seen in zip(bins, sums, strict=True) if seen >= 0.999 * total)

    @property
    def bin_width(self) -> float:
        """Every bin of the histogram is this wide."""
        return (self.high - self.low) / max(len(self.counts), 1)


def activation_reports(
    histograms: Mapping[str, ValueHistogram], quantized: onnx.ModelProto
) -> tuple[ActivationReport, ...]:
    """What was seen of the activations that a model quantizes, and what their quantizers cover, in graph order."""
    graph = Dataflow(quantized)
    found = list[ActivationReport]()
    for node in quantized.graph.node:
        if node.op_type != "QuantizeLinear":
            continue
        name = _float_tensor(node, graph, histograms)
        limits = _limits(node, graph)
        if name is not None and limits is not None:
            seen = histograms[name]
            found.append(
                ActivationReport(
                    name=name,
                    low=seen.low,
                    high=seen.high,
                    range_low=limits[0],
                    range_high=limits[1],
                    clipped=seen.clipped,
                    counts=seen.counts,
                )
            )
    return tuple(found)


def _float_tensor(node: onnx.NodeProto, graph: Dataflow, known: Mapping[str, object]) -> str | None:
    """The name in the float model of what a QuantizeLinear reads. The tensor in front of an output has another one than
    the output, which the DequantizeLinear gives.
    """
    after = graph.only_reader(node.output[0])
    names = (node.input[0], *(after.output[:1] if after is not None else ()))
    return next((name for name in names if name in known), None)


def _limits(node: onnx.NodeProto, graph: Dataflow) -> tuple[float, float] | None:
    """The smallest and the largest value that a quantizer of one scale can give."""
    scale, zero_point = dequantize_parameters(node, graph)
    if scale is None or scale.size != 1 or zero_point.size != 1 or zero_point.dtype.name not in INTEGERS:
        return None
    kind = INTEGERS[zero_point.dtype.name]
    step, zero = float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0])
    return (kind.qmin - zero) * step, (kind.qmax - zero) * step
