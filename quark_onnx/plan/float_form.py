"""Which form of the float model a quantized model was made from."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import onnx

from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import Plan

__all__ = ["matching_form"]


def matching_form(
    forms: Iterable[onnx.ModelProto], quantized: onnx.ModelProto, op_types: Collection[str]
) -> onnx.ModelProto:
    """Return the one of several forms of a float model whose layers and weights are those of the quantized model.

    The tool that quantized may have folded BatchNormalization, or written MatMul and Add as Gemm, before. A layer
    must be tuned towards the output that it had in the graph that was quantized.
    """
    return max(forms, key=lambda form: _likeness(build_plan(form, quantized, op_types)))


def _likeness(plan: Plan) -> tuple[int, float]:
    """The layers that were found, then how near their weights are, in steps."""
    distances = []
    for weight in (layer.weight for layer in plan.layers):
        steps = np.clip(weight.steps, weight.qmin - 1, weight.qmax + 1)
        distances.append(np.abs(steps - weight.rows_q).mean())
    return len(plan.layers), -float(np.sum(distances))
