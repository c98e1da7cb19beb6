"""Operators that onnxruntime's quantizer has no rules for: it sees an operator of ONNX in their place.

It tells weights and biases from activations by the operator. One that it does not know would get the Q/DQ of an
activation on all its inputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx

from quark.onnx.operators.table import OPERATORS, Operator

__all__ = ["put_back_operators", "put_in_stand_ins"]


def put_in_stand_ins(
    graph: onnx.GraphProto, op_types: Collection[str], excluded: Collection[str]
) -> tuple[tuple[str, ...], frozenset[str]]:
    """Give the nodes of operators with a `quantizer_op_type` that type. In place.

    Args:
        graph: a prepared graph, whose nodes have names of their own.
        op_types: the operators that are quantized.
        excluded: the nodes that are not.

    Returns:
        Both, such that the same nodes are quantized.
    """
    replaced = {node.name: operator for node, operator in _with_stand_in(graph)}
    seen = {operator.quantizer_op_type for operator in replaced.values() if operator.op_type in op_types}
    left = {node.name for node in graph.node if node.op_type not in op_types}
    for node in graph.node:
        if node.name in replaced:
            node.op_type, node.domain = replaced[node.name].quantizer_op_type, ""
    return tuple(dict.fromkeys((*op_types, *seen))), frozenset(excluded) | left


def put_back_operators(quantized: onnx.GraphProto, graph: onnx.GraphProto) -> None:
    """Give the nodes of a quantized graph the operators that they have in the graph that it was made from. In place."""
    given = {node.name: node for node, _ in _with_stand_in(graph)}
    for node in quantized.node:
        if node.name in given:
            node.op_type, node.domain = given[node.name].op_type, given[node.name].domain


def _with_stand_in(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, Operator]]:
    for node in graph.node:
        operator = OPERATORS.get(node.op_type)
        if operator is not None and operator.quantizer_op_type and node.domain in operator.domains:
            yield node, operator
