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

__all__ = ["fold_batch_normalization", "fold_gemm_factors", "write_matmul_as_gemm"]


def write_matmul_as_gemm(editor: GraphEditor, ranks: Mapping[str, int]) -> None:
    """A MatMul of a matrix by a constant, if Add or BatchNormalization alone reads it, becomes a Gemm.

    Args:
        editor: the graph.
        ranks: tensor -> number of dimensions, where known.
    """
    for node in list(editor.graph.node):
        weight = editor.constant(node, 1) if node.op_type == "MatMul" else None
        after = editor.sole_reader(node.output[0])
        if weight is None or weight.ndim != 2 or ranks.get(node.input[0]) != 2 or after is None:
            continue
        if after.op_type == "BatchNormalization":
            node.op_type = "Gemm"
        elif after.op_type == "Add":
            index = 1 - list(after.input).index(node.output[0])
            bias = editor.constant(after, index)
            if bias is not None and bias.shape in (weight.shape[1:], (1, weight.shape[1])):
                node.op_type = "Gemm"
                editor.set_constant(node, 2, bias.reshape(-1), like=after.input[index])
                editor.absorb(node, after)


def fold_gemm_factors(editor: GraphEditor) -> None:
    """Multiply alpha into constant weights and beta into constant biases, which become vectors.

    A bias that differs from row to row becomes an Add of its own.
    """
    for node in list(editor.graph.node):
        if node.op_type != "Gemm":
            continue
        weight, bias = editor.constant(node, 1), editor.constant(node, 2)
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        if weight is not None and alpha != 1.0:
            editor.set_constant(node, 1, alpha * weight.astype(np.float64), like=node.input[1])
            _remove_attribute(node, "alpha")
        if bias is None:
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


def fold_batch_normalization(editor: GraphEditor) -> None:
    """Fold BatchNormalization at inference into the Gemm before it, whose factors are folded already.

    onnxslim does the same for Conv and ConvTranspose.
    """
    for node in list(editor.graph.node):
        after = editor.sole_reader(node.output[0])
        if node.op_type != "Gemm" or after is None or after.op_type != "BatchNormalization":
            continue
        if any(after.output[1:]) or attribute(after, "training_mode", 0):
            continue
        weight, bias = editor.constant(node, 1), editor.constant(node, 2)
        gamma, shift, mean, variance = (editor.constant(after, index) for index in range(1, 5))
        if weight is None or gamma is None or shift is None or mean is None or variance is None:
            continue
        if bias is None:
            if len(node.input) > 2:
                continue
            bias = np.zeros_like(mean)
        gain = gamma / np.sqrt(variance.astype(np.float64) + attribute(after, "epsilon", 1e-5))
        gain_of_weight = gain[:, None] if attribute(node, "transB", 0) else gain
        editor.set_constant(node, 1, weight * gain_of_weight, like=node.input[1])
        editor.set_constant(node, 2, (bias - mean) * gain + shift, like=after.input[2])
        editor.absorb(node, after)


def _split_off_bias(editor: GraphEditor, node: onnx.NodeProto) -> None:
    output, bias = node.output[0], node.input[2]
    editor.drop_last_input(node)
    node.output[0] = editor.fresh_name(output + "_product")
    editor.insert_after(node, onnx.helper.make_node("Add", [node.output[0], bias], [output]))


def _remove_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    node.ClearField("attribute")
    node.attribute.extend(kept)
