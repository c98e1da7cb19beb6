"""CalibMethod of an activation: which range of it the integers cover."""

from __future__ import annotations

from dataclasses import dataclass

from quark.onnx import _core
from quark.onnx.config.spec import CalibMethod, ScaleType

__all__ = ["ActivationRange"]


@dataclass(frozen=True, kw_only=True)
class ActivationRange:
    """How the range of an activation follows from the histogram of its values (docs/numerics.md).

    Attributes:
        method: any but MinOutputMSE.
        qmin, qmax, symmetric, scales: the quantizer whose error MinMSE and LayerwisePercentile look at.
        percentiles: in percent: the one of Percentile, the candidates of LayerwisePercentile.
        symmetric_cut: percentiles are those of |x|, and MinMax gives both ends the same size; False: each end has its
            own. None: True for percentiles, False for MinMax.
        squared: LayerwisePercentile goes by the mean squared error, not by the mean absolute one.
        levels: of Entropy, even.
    """

    method: CalibMethod = CalibMethod.MinMax
    qmin: int = 0
    qmax: int = 255
    symmetric: bool = False
    scales: ScaleType = ScaleType.Float32
    percentiles: tuple[float, ...] = (99.999,)
    symmetric_cut: bool | None = None
    squared: bool = False
    levels: int = 128

    @property
    def is_exact(self) -> bool:
        """Whether ranges are those of onnxruntime.quantization to the last bit: the model runs as that runs it."""
        return self.method is CalibMethod.MinMax

    @property
    def is_symmetric(self) -> bool:
        """Whether ranges have both ends as far from 0 as the farther one, beyond what was seen."""
        return self.method is CalibMethod.Distribution or (
            self.method is CalibMethod.MinMax and self.symmetric_cut is True
        )

    def of(self, ranges: _core.ValueRanges, index: int) -> tuple[float, float]:
        """(lowest, highest) of a tensor."""
        method = CalibMethod.Distribution if self.is_symmetric else self.method
        return ranges.choose(
            index, method.name,
            qmin=self.qmin, qmax=self.qmax, symmetric=self.symmetric, scale_type=self.scales.name,
            two_sided=self.symmetric_cut is False, percentiles=self.percentiles, squared=self.squared,
            levels=self.levels,
        )  # fmt: skip
