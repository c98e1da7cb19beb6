"""Weights that several layers have: tuned once, on the data of all of them, or left as they are with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import onnx

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.plan.reasons import Reason, Why
from quark.onnx.plan.types import LayerPlan, Plan, SkippedLayer

__all__ = ["leave_shared", "share_weights"]


def share_weights(
    entries: Sequence[tuple[onnx.NodeProto, LayerPlan | SkippedLayer]], graph: Dataflow
) -> list[LayerPlan | SkippedLayer]:
    """Let the layers of a quantized graph that share a weight name each other. Their biases stay. Where another node
    reads the weight too, it must not change: they are skipped.
    """
    users: dict[str, list[tuple[onnx.NodeProto, LayerPlan]]] = {}
    for node, entry in entries:
        if isinstance(entry, LayerPlan):
            users.setdefault(entry.weight.initializer, []).append((node, entry))
    obstacles = {weight: _obstacle(weight, of_weight, graph) for weight, of_weight in users.items()}

    def shared(entry: LayerPlan | SkippedLayer) -> LayerPlan | SkippedLayer:
        if isinstance(entry, SkippedLayer):
            return entry
        if (why := obstacles[entry.weight.initializer]) is not None:
            return SkippedLayer(entry.node, entry.op_type, why)
        others = tuple(layer.node for _, layer in users[entry.weight.initializer] if layer is not entry)
        return replace(entry, shares=others, bias=None, stage=None) if others else entry

    return [shared(entry) for _, entry in entries]


def leave_shared(plan: Plan, but: str) -> Plan:
    """The plan without the layers that share a weight.

    Args:
        but: of the reason, what follows "it shares its weight with ..., and".
    """
    skipped = (
        SkippedLayer(layer.node, layer.op_type, Reason.SHARED_WEIGHT.why(others=_named(layer.shares), but=but))
        for layer in plan.layers
        if layer.shares
    )
    return Plan(tuple(layer for layer in plan.layers if not layer.shares), (*plan.skipped, *skipped))


def _named(nodes: Sequence[str]) -> str:
    return ", ".join(map(repr, nodes))


def _obstacle(initializer: str, users: Sequence[tuple[onnx.NodeProto, LayerPlan]], graph: Dataflow) -> Why | None:
    """Why a weight must stay as it is; None if it may be tuned."""
    tuned = {id(node) for node, _ in users}
    for reader in _readers(initializer, graph):
        if reader is None:
            return Reason.WEIGHT_IS_OUTPUT.why(weight=initializer)
        if id(reader) not in tuned:
            name = reader.name or reader.output[0]
            return Reason.WEIGHT_READ_ELSEWHERE.why(weight=initializer, op_type=reader.op_type, name=name)
    first = users[0][1]
    for _, layer in users[1:]:
        if layer.groups != first.groups or not _are_alike(layer, first):
            return Reason.WEIGHT_ARRANGED_OTHERWISE.why(first=first.node, other=layer.node)
    return None


def _are_alike(layer: LayerPlan, other: LayerPlan) -> bool:
    a, b = layer.weight, other.weight
    pairs = ((a.rows_q, b.rows_q), (a.scale, b.scale), (a.zero_point, b.zero_point))
    return a.layout == b.layout and all(np.array_equal(x, y) for x, y in pairs)


def _readers(initializer: str, graph: Dataflow) -> Iterator[onnx.NodeProto | None]:
    """Who reads an initializer, through DequantizeLinear as well; None: the model returns it."""
    if initializer in graph.outputs:
        yield None
    for reader in graph.readers(initializer):
        if reader.op_type != "DequantizeLinear" or reader.input[0] != initializer:
            yield reader
            continue
        yield from graph.readers(reader.output[0])
        if reader.output[0] in graph.outputs:
            yield None
