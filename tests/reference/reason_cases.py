"""Which reason to leave a layer as it is occurs in which plan or run: a register that test files fill."""

from __future__ import annotations

import re
from collections.abc import Callable

from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import Plan

Reasons = dict[str, str]  # by the layer's name
CASES: dict[Reason, list[tuple[Callable[[], Plan | Reasons], str]]] = {}


def occurs(reason: Reason, *, layer: str = "layer", **about: object) -> Callable[..., Callable[[], Plan | Reasons]]:
    """Require the reason for the layer `layer` in the plan, or among the reasons, that a function gives."""
    text = ".*".join(map(re.escape, re.split(r"{\w+[^}]*}", reason.text)))
    expected = re.escape(reason.why(**about)) if about else text

    def registered(case: Callable[[], Plan | Reasons]) -> Callable[[], Plan | Reasons]:
        CASES.setdefault(reason, []).append((case, f"{layer}: {expected}"))
        return case

    return registered


def reasons_of(given: Plan | Reasons) -> Reasons:
    return {layer.node: layer.reason for layer in given.skipped} if isinstance(given, Plan) else given
