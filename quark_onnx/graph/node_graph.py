"""The nodes of a model, and who reads whom: what a configuration chooses nodes from."""

from __future__ import annotations

import onnx

from quark.onnx.config.node_selection import NodeGraph
from quark.onnx.graph.editor import reads

__all__ = ["node_graph"]


def node_graph(model: onnx.ModelProto) -> NodeGraph:
    """The nodes of a model's main graph; what the bodies of If, Loop and Scan read, their node reads."""
    nodes = list(model.graph.node)
    writer = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        for made in {writer[name] for name in reads(node) if name in writer}:
            readers[made].append(index)
    return NodeGraph(tuple(node.name for node in nodes), tuple(map(tuple, readers)))
