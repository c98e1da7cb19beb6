"""The plan: plain data, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quark.onnx.core_view.arrangement import Arrangement
from quark.onnx.core_view.output_stage import OutputStage
from quark.onnx.operators.attributes import ConvAttributes
from quark.onnx.operators.row_layout import RowLayout
from quark.onnx.plan.reasons import Why

__all__ = ["LayerPlan", "Plan", "QuantizedBias", "QuantizedInput", "QuantizedWeight", "SkippedLayer"]

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class QuantizedInput:
    """The layer's input in the quantized graph.

    Attributes:
        tensor: what the walk fetches: the 8-bit tensor before the DequantizeLinear, or a float tensor.
        scale, zero_point: of the 8-bit tensor; 1 and 0 for a float tensor.
    """

    tensor: str
    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A layer's weight as rows: one row per output channel, K inputs each.

    Attributes:
        initializer: name in the quantized model.
        rows: (outputs, K) float32, the float model's weight.
        rows_q: (outputs, K) int32, the quantized model's integers.
        scale: (outputs,) float32; a per-tensor scale is repeated. Or (outputs, blocks), each of K / blocks inputs.
        zero_point: of the same shape, int32.
        qmin, qmax: the integers that may be used.
        layout: of the rows in the initializer.
    """

    initializer: str
    rows: NDArray[np.float32]
    rows_q: NDArray[np.int32]
    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    qmin: int
    qmax: int
    layout: RowLayout

    @property
    def steps(self) -> NDArray[np.float32]:
        """The float weight as (fractions of) integers, not clipped: (outputs, K)."""
        return self.rows / self._of_every_weight(self.scale) + self.zero_points

    @property
    def reach(self) -> int:
        """The largest distance of an integer that may be used from its zero point."""
        zeros = self.zero_point.astype(np.int64)
        return int(max((self.qmax - zeros).max(initial=0), (zeros - self.qmin).max(initial=0)))

    @property
    def zero_points(self) -> NDArray[np.int32]:
        """The zero points in a shape that broadcasts to (outputs, K)."""
        return self._of_every_weight(self.zero_point)

    def _of_every_weight(self, values: NDArray[_Number]) -> NDArray[_Number]:
        if values.ndim == 1:
            return values[:, None]
        return np.repeat(values, self.rows.shape[1] // values.shape[1], axis=1)


@dataclass(frozen=True, eq=False)
class QuantizedBias:
    """A layer's integer bias.

    Attributes:
        initializer: name in the quantized model; None when the bias is not an integer initializer of its own, so that
            it must stay as it is.
        real: (outputs,) float32, what the quantized model adds.
        scale: (outputs,) float32.
        qmin, qmax: the integers that may be used.
    """

    initializer: str | None
    real: NDArray[np.float32]
    scale: NDArray[np.float32]
    qmin: int
    qmax: int


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """One layer to be finetuned: output = factor * (W x) + bias, of x and output as they are arranged.

    Attributes:
        node: name of the node in the quantized model.
        groups: of a Conv or ConvTranspose; the outputs below are of all groups together.
        conv: None for Gemm and MatMul. Of a normalization: one group with one weight for each element of its scale.
        factor: Gemm's alpha.
        arrangement: what becomes of the tensors below before the core sees them.
        input: what feeds it in the quantized graph.
        target: the tensor of the float graph that it should reproduce, before any activation.
        float_input: what feeds it in the float graph.
        stage: what the gradient loops look through behind the layer; None: nothing.
        shares: the nodes of other layers with the same weight initializer, which is tuned once for all. Then target,
            stage and bias have no part in it: the output is to be that of the float weight.
    """

    node: str
    op_type: str
    groups: int
    conv: ConvAttributes | None
    factor: float
    arrangement: Arrangement
    input: QuantizedInput
    target: str
    float_input: str
    stage: OutputStage | None
    weight: QuantizedWeight
    bias: QuantizedBias | None
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkippedLayer:
    """A layer that is left as it is, and why.

    Attributes:
        node, op_type: its name in the quantized model, and its operator.
        reason: why, as docs/supported.md lists it.
    """

    node: str
    op_type: str
    reason: Why


@dataclass(frozen=True)
class Plan:
    """All layers in graph order, those that are left out included."""

    layers: tuple[LayerPlan, ...]
    skipped: tuple[SkippedLayer, ...]
