"""How much memory a pass through a model takes."""

from __future__ import annotations

import math
from collections.abc import Iterable

import onnx

from quark.onnx.graph.dataflow import Dataflow

__all__ = ["live_bytes"]


def live_bytes(model: onnx.ModelProto) -> float:
    """The bytes of a sample's tensors that exist at the same time, at the most, node after node.

    Tensors whose shape the model leaves open count as nothing.
    """
    flow = Dataflow(model)
    last = {name: index for index, node in enumerate(model.graph.node) for name in flow.reads(node)}
    last.update(dict.fromkeys(flow.outputs, len(model.graph.node)))

    def size(names: Iterable[str]) -> float:
        sizes = (flow.bytes_per_sample(name) for name in names if not flow.is_constant(name))
        return sum(one for one in sizes if not math.isnan(one))

    now = most = size(flow.inputs)
    for index, node in enumerate(model.graph.node):
        now += size(node.output)
        most = max(most, now)
        now -= size(name for name in {*flow.reads(node), *node.output} if last.get(name, index) <= index)
    return most
