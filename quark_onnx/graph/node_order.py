"""The order of a graph's nodes: each behind those whose outputs it reads."""

from __future__ import annotations

import heapq
from collections.abc import Sequence, Set

import onnx

__all__ = ["Cycle", "node_order"]


class Cycle(Exception):
    """Nodes go round in a circle.

    Attributes:
        nodes: indices; each node reads what the one before it makes, the first what the last makes.
    """

    def __init__(self, nodes: list[int]) -> None:
        super().__init__(nodes)
        self.nodes = nodes


def node_order(nodes: Sequence[onnx.NodeProto], reads: Sequence[Set[str]]) -> list[int]:
    """The indices of the nodes in topological order; of those that could come next, the one that stood first.

    Args:
        reads: of each node, the tensors that it needs. Those that no node makes are there anyway.

    Raises:
        Cycle: there is no such order.
    """
    maker = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    needs = [{maker[name] for name in names if name in maker} for names in reads]
    if all(max(before, default=-1) < index for index, before in enumerate(needs)):
        return list(range(len(nodes)))
    readers: list[list[int]] = [[] for _ in nodes]
    for index, before in enumerate(needs):
        for producer in before:
            readers[producer].append(index)
    missing = list(map(len, needs))
    ready = [index for index, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(nodes):
        raise Cycle(_circle(needs, set(range(len(nodes))).difference(order)))
    return order


def _circle(needs: Sequence[Set[int]], stuck: Set[int]) -> list[int]:
    """Every node that is stuck needs one that is: going from need to need comes round."""
    path: list[int] = []
    seen: dict[int, int] = {}
    index = min(stuck)
    while index not in seen:
        seen[index] = len(path)
        path.append(index)
        index = min(needs[index] & stuck)
    return path[seen[index] :][::-1]
