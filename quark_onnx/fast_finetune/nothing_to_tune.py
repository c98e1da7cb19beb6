"""What is said of a model of which no layer can be finetuned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quark.onnx.plan.types import SkippedLayer

__all__ = ["nothing_to_tune"]

_MOST_REASONS = 8


def nothing_to_tune(skipped: Sequence[SkippedLayer], op_types: Iterable[str]) -> str:
    """A sentence with the first reasons; the report has all of them."""
    reasons = [f"{layer.node} ({layer.op_type}): {layer.reason}" for layer in skipped[:_MOST_REASONS]]
    if len(skipped) > _MOST_REASONS:
        reasons.append(f"and {len(skipped) - _MOST_REASONS} more")
    none = f"the model has no node of the types {', '.join(op_types)}"
    return f"no layer can be finetuned: {'; '.join(reasons) or none}"
