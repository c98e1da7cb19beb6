"""Matrix products in one form: Gemm with alpha = beta = 1 and a bias of one value per output channel.

onnxruntime's quantizer relies on this form: it quantizes the bias to int32 with the scale
input_scale * weight_scale, or one such scale per output channel; it forgets beta, and takes the first axis of
a bias for its channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from quark.onnx.graph.editor import GraphEditor, attribute

__all__ = ["fold_gemm_factors", "write_matmul_as_gemm"]


def write_matmul_as_gemm(editor: GraphEditor, shapes: Mapping[str, list[int | None]]) -> None:
    """A MatMul by a constant matrix, if Add of a bias or BatchNormalization alone reads it, becomes a Gemm.

    One of more axes than two gets a Reshape before and behind, where all lengths are known.

    Args:
        editor: the graph.
        shapes: of the tensors whose number of axes is known; None for a length that is open.
    """
    for node in editor.graph.node:
        weight = editor.constant(node, 1) if node.op_type == "MatMul" and not node.domain else None
        after = editor.sole_reader(node.output[0]) if weight is not None else None
        if weight is None or weight.ndim != 2 or after is None or after.domain:
            continue
        shape = shapes.get(node.input[0])
        if shape is None:
            continue
        if after.op_type == "BatchNormalization" and len(shape) == 2:
            node.op_type = "Gemm"
        elif after.op_type == "Add" and (len(shape) == 2 or (len(shape) > 2 and None not in shape)):
            index = 1 - list(after.input).index(node.output[0])
            bias = editor.constant(after, index)
            if bias is not None and 0 < bias.ndim <= len(shape) and bias.size == bias.shape[-1] == weight.shape[1]:
                node.op_type = "Gemm"
                editor.set_constant(node, 2, bias.reshape(-1), like=after.input[index])
                editor.absorb(node, after)
                if len(shape) > 2:
                    _in_rows(editor, node, [length or 0 for length in shape], *weight.shape)
    editor.sweep()


def _in_rows(editor: GraphEditor, node: onnx.NodeProto, shape: list[int], inputs: int, outputs: int) -> None:
    """Let a Gemm see the rows of a tensor of this shape."""
    stem, output = node.name or node.output[0], node.output[0]
    rows, product = editor.fresh_name(f"{output}_rows"), editor.fresh_name(f"{output}_product")
    shapes = [editor.add_integers(dims, like=f"{output}_shape") for dims in ([-1, inputs], [*shape[:-1], outputs])]
    editor.surround(
        node,
        onnx.helper.make_node("Reshape", [node.input[0], shapes[0]], [rows], f"{stem}_rows"),
        onnx.helper.make_node("Reshape", [product, shapes[1]], [output], f"{stem}_shape"),
    )
    node.input[0], node.output[0] = rows, product


def fold_gemm_factors(editor: GraphEditor) -> None:
    """Multiply alpha into constant weights and beta into constant biases, which become vectors.

    A bias that differs from row to row becomes an Add of its own.
    """
    for node in list(editor.graph.node):
        if node.op_type != "Gemm" or node.domain:
            continue
        weight, bias = editor.constant(node, 1), editor.constant(node, 2)
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        if weight is not None and alpha != 1.0:
            editor.set_constant(node, 1, alpha * weight.astype(np.float64), like=node.input[1])
            _remove_attribute(node, "alpha")
        if bias is None:
            if not any(node.input[2:]):
                _remove_attribute(node, "beta")  # a bias that it gets later counts in full
            continue
        if beta == 0.0:
            editor.drop_last_input(node)
        else:
            scaled = beta * bias.astype(np.float64)
            if weight is not None:
                channels = weight.shape[0 if attribute(node, "transB", 0) else 1]
                if scaled.size == 1 or scaled.size == scaled.shape[-1] == channels:
                    scaled = np.broadcast_to(scaled.reshape(-1), (channels,))
            if beta != 1.0 or scaled.shape != bias.shape:
                editor.set_constant(node, 2, scaled, like=node.input[2])
            if weight is not None and scaled.ndim != 1:
                _split_off_bias(editor, node)
        _remove_attribute(node, "beta")
    editor.sweep()


def _split_off_bias(editor: GraphEditor, node: onnx.NodeProto) -> None:
    output, bias = node.output[0], node.input[2]
    editor.drop_last_input(node)
    node.output[0] = editor.fresh_name(output + "_product")
    editor.insert_after(node, onnx.helper.make_node("Add", [node.output[0], bias], [output]))


def _remove_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    node.ClearField("attribute")
    node.attribute.extend(kept)
