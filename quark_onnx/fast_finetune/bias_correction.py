"""Bias correction: each layer's integer bias takes up the mean error of the layer's output (arXiv 1906.04721, 4.2).

This is finetuning in which weights stay: the walk feeds each layer what the quantized model does, the layers before it
corrected already, and of the moments the means alone decide.
"""

from __future__ import annotations

import onnx

from quark.onnx import _core
from quark.onnx.operators.table import LINEAR
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.reasons import Reason, Why
from quark.onnx.plan.shared_weights import leave_shared
from quark.onnx.plan.types import LayerPlan, Plan, SkippedLayer
from quark.onnx.solvers.choose_solver import as_far_as_memory_goes
from quark.onnx.solvers.least_squares import LeastSquaresLayer, LeastSquaresSettings
from quark.onnx.solvers.solver import OpenSolver

__all__ = ["bias_plan", "bias_solver"]


def bias_plan(float_model: onnx.ModelProto, quantized: onnx.ModelProto) -> Plan:
    """The layers of a quantized model whose bias is an integer initializer of their own; the others, with reasons."""
    plan = leave_shared(build_plan(float_model, quantized, LINEAR), "bias correction takes one layer at a time")
    reasons = {id(layer): _why_not(layer) for layer in plan.layers}
    return Plan(
        tuple(layer for layer in plan.layers if not reasons[id(layer)]),
        (
            *plan.skipped,
            *(SkippedLayer(layer.node, layer.op_type, why) for layer in plan.layers if (why := reasons[id(layer)])),
        ),
    )


def _why_not(layer: LayerPlan) -> Why | None:
    if layer.bias is None:
        return Reason.NO_BIAS.why()
    return None if layer.bias.initializer is not None else Reason.BIAS_NOT_OWN.why()


def bias_solver(samples: int, seed: int) -> OpenSolver:
    """What opens the solver of a layer that moves its bias alone.

    Args:
        samples: how many each layer will be fed.
        seed: of the choice of rows.
    """
    settings = LeastSquaresSettings(free=False, update_bias=True, seed=seed, damping=())

    def opened(layer: LayerPlan, pool: _core.ThreadPool) -> LeastSquaresLayer:
        return LeastSquaresLayer(layer, settings, samples=samples, pool=pool)

    return as_far_as_memory_goes(opened)
