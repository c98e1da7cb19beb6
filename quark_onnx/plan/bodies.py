"""Layers in the bodies of If, Loop and Scan: never tuned, always named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import onnx

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import reads, subgraphs
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import SkippedLayer

__all__ = ["layers_in_bodies"]


def layers_in_bodies(node: onnx.NodeProto, graph: Dataflow, op_types: Collection[str]) -> Iterator[SkippedLayer]:
    """The layers with a constant weight in the bodies of a node of the main graph, and in theirs."""
    for body in subgraphs(node):
        yield from _layers(body, node, graph.is_constant, op_types)


def _layers(
    body: onnx.GraphProto, owner: onnx.NodeProto, constant_outside: Callable[[str], bool], op_types: Collection[str]
) -> Iterator[SkippedLayer]:
    constants = {tensor.name for tensor in body.initializer}

    def is_constant(tensor: str) -> bool:
        return tensor in constants or constant_outside(tensor)

    for node in body.node:
        if all(map(is_constant, reads(node))):
            constants.update(node.output)
        elif node.op_type in op_types and any(map(is_constant, filter(None, node.input[:2]))):
            why = Reason.IN_BODY.why(op_type=owner.op_type, name=owner.name or owner.output[0])
            yield SkippedLayer(node.name or node.output[0], node.op_type, why)
        for inner in subgraphs(node):
            yield from _layers(inner, node, is_constant, op_types)
