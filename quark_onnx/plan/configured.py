"""What of a plan the settings of finetuning leave out."""

from __future__ import annotations

from collections.abc import Collection

from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.plan.excluded import leave_excluded
from quark.onnx.plan.shared_weights import leave_shared
from quark.onnx.plan.types import Plan

__all__ = ["leave_as_configured"]


def leave_as_configured(plan: Plan, config: FastFinetuneConfig, excluded: Collection[str]) -> Plan:
    """The plan without the layers that are excluded, and without shared weights where layers are tuned one at a time.

    Args:
        excluded: what the excluded layers make in the float model.
    """
    plan = leave_excluded(plan, excluded)
    if config.solver == "gradient":
        plan = leave_shared(plan, "the gradient solver tunes one layer at a time")
    if config.selective_update:
        plan = leave_shared(plan, "selective_update judges one layer at a time")
    return plan
