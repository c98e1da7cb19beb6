"""Relu and Clip nodes that onnxruntime's quantizer would take away although no Q/DQ does their work."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from quark.onnx.graph.editor import GraphEditor

__all__ = ["irremovable_activations"]


def irremovable_activations(graph: onnx.GraphProto) -> Iterator[str]:
    """Relu and Clip nodes whose work the range of a Q/DQ cannot do, although onnxruntime's quantizer lets it.

    The interval of a Clip may not hold 0, as every quantizer's must, or may not be constant. The tensor
    before the activation, which would be clipped too, may be an output of the model or be read in a subgraph. The
    tensor behind it may be read in a subgraph, past the Q/DQ. The output of a Softmax gets the range 0 to 1, whatever
    the one of the Clip behind it.
    """
    editor = GraphEditor(graph)
    softmax = {node.output[0] for node in graph.node if node.op_type == "Softmax"}
    for node in graph.node:
        if node.op_type in ("Relu", "Clip"):
            before, behind = node.input[0], node.output[0]
            read_elsewhere = any(reader is None or before not in reader.input for reader in editor.readers(before))
            read_in_body = any(reader and behind not in reader.input for reader in editor.readers(behind))
            of_softmax = node.op_type == "Clip" and before in softmax
            if read_elsewhere or read_in_body or of_softmax or not _clips_around_zero(editor, node):
                yield node.name


def _clips_around_zero(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    for index, sign in ((1, -1.0), (2, 1.0)):
        if index < len(node.input) and node.input[index]:
            bound = editor.constant(node, index)
            if bound is None or sign * bound.item() < 0.0:
                return False
    return True
