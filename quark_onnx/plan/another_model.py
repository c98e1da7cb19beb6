"""Whether the float model is the one that the quantized model was made from."""

from __future__ import annotations

from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import Plan

__all__ = ["doubt_of_the_float_model"]


def doubt_of_the_float_model(plan: Plan) -> str:
    """What to tell the user where at least half of the layers have weights far from the float model's; else ""."""
    far = [layer.node for layer in plan.skipped if layer.reason == Reason.ANOTHER_WEIGHT.why()]
    pairs = len(far) + len(plan.layers)
    if 2 * len(far) < pairs or not far:
        return ""
    return (
        f"the weights of {len(far)} of {pairs} layers, {far[0]!r} among them, are not near those of the float model: "
        "is this the model that the quantized one was made from?"
    )
