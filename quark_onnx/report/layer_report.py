"""What finetuning did to one layer."""

from __future__ import annotations

from dataclasses import dataclass

from quark.onnx.report.loss_curve import LossCurve

__all__ = ["LayerReport"]

_NONE = (float("nan"), float("nan"))


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer. Pairs are (fitted rows, held-out rows).

    Attributes:
        name, op_type: of the node in the quantized model.
        inputs, outputs: K inputs per output, and output channels of all groups.
        accepted: the layer was changed.
        improved: how many outputs got a smaller error on held-out rows (with `solver="gradient"`, which holds none out,
            on all rows); the others keep their old integers.
        reason: why it was not.
        candidate: the solution that won most of the improved outputs on held-out rows.
        before, after: mean squared error of the layer's output before its activation, summed over output channels. Of
            layers that share a weight, over the rows of all, from the outputs of the float weight on the same inputs.
        power: mean squared float output, for comparison.
        rows: how many output positions were used.
        losses: of a training loop: (steps so far, mean loss since the point before); none where there was no loop.
        notes: what was done in another way than usual: solved on some of its rows, a factor in float64, most outputs
            left with their best bias, another solver for want of memory.
        seconds: for this layer, inference of its data included; with `parallel=True` of its solver alone.
        solve_seconds: of these, for finding the integers once all data is there: training, or solving from moments.
    """

    name: str
    op_type: str
    inputs: int
    outputs: int
    accepted: bool = False
    improved: int = 0
    reason: str = ""
    candidate: str = "unchanged"
    before: tuple[float, float] = _NONE
    after: tuple[float, float] = _NONE
    power: tuple[float, float] = _NONE
    rows: tuple[int, int] = (0, 0)
    losses: LossCurve = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    solve_seconds: float = 0.0
