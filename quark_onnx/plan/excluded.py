"""Layers that the configuration excludes are left as they are."""

from __future__ import annotations

from collections.abc import Collection

from quark.onnx.plan.reasons import Reason, Why
from quark.onnx.plan.types import LayerPlan, Plan, SkippedLayer

__all__ = ["leave_excluded"]


def leave_excluded(plan: Plan, outputs: Collection[str]) -> Plan:
    """The plan without the layers that are excluded, and without those that share a weight with one of them.

    Args:
        outputs: what the excluded layers make in the float model.
    """
    excluded = {layer.node for layer in plan.layers if layer.target in outputs}
    reasons = {id(layer): _why_not(layer, excluded) for layer in plan.layers}
    skipped = (SkippedLayer(layer.node, layer.op_type, why) for layer in plan.layers if (why := reasons[id(layer)]))
    return Plan(tuple(layer for layer in plan.layers if not reasons[id(layer)]), (*plan.skipped, *skipped))


def _why_not(layer: LayerPlan, excluded: Collection[str]) -> Why | None:
    if layer.node in excluded:
        return Reason.EXCLUDED.why()
    if others := [name for name in layer.shares if name in excluded]:
        named = ", ".join(map(repr, layer.shares))
        return Reason.SHARED_WEIGHT.why(others=named, but=f"{others[0]!r} is excluded")
    return None
