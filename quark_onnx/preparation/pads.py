"""Pad with pads of all axes, which is what tools expect: the input `axes` came with opset 18."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import GraphEditor
from quark.onnx.graph.known_shapes import known_lengths

__all__ = ["write_pads_of_all_axes"]


def write_pads_of_all_axes(graph: onnx.GraphProto) -> None:
    """Take the constant input `axes` away from Pad nodes with constant pads.

    Args:
        graph: with shapes.
    """
    shapes = known_lengths(graph)
    editor = GraphEditor(graph)
    for node in graph.node:
        if node.op_type != "Pad" or node.domain or len(node.input) < 4:
            continue
        pads, axes = (editor.initializers.get(node.input[index]) for index in (1, 3))
        shape = shapes.get(node.input[0], shapes.get(node.output[0]))
        if pads is None or axes is None or shape is None:
            continue
        rank = len(shape)
        given, along = numpy_helper.to_array(pads).tolist(), numpy_helper.to_array(axes).tolist()
        of_all = [0] * (2 * rank)
        for i, axis in enumerate(along):
            of_all[axis % rank], of_all[rank + axis % rank] = given[i], given[len(along) + i]
        editor.set_input(node, 1, editor.add_integers(of_all, like=node.input[1]))
        node.input.pop()
        while not node.input[-1]:
            node.input.pop()
