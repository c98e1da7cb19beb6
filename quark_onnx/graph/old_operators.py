"""What onnx's version converter forgets of old operators: written for it before, and mended after it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from quark.onnx.graph.editor import GraphEditor, attribute, attributes, constant_tensors, reads, subgraphs

__all__ = ["keep_old_resize", "write_for_converter"]

_SOFTMAX = ("LogSoftmax", "Softmax")


def write_for_converter(graph: onnx.GraphProto) -> None:
    """Write old operators in the way that the converter understands; what they compute stays.

    Pad of mode "edge" or "reflect" loses its `value`, which the converter would leave as an attribute that newer ones
    do not have. Hardmax, which takes all axes from `axis` on for one, gets a matrix, as the converter gives it to
    Softmax; Softmax and LogSoftmax that a body reads get it here, as the converter fails at them. BatchNormalization
    with `spatial` = 0, which has a constant per element, becomes a product and a sum.

    Args:
        graph: of an opset below 13; changed in place.
    """
    _write(graph, GraphEditor(graph))


def _write(graph: onnx.GraphProto, names: GraphEditor) -> None:
    tensors, nodes = constant_tensors(graph), list[onnx.NodeProto]()
    read_in_bodies = {name for node in graph.node for name in set(reads(node)).difference(node.input)}
    for node in graph.node:
        for body in subgraphs(node):
            _write(body, names)
        given = {} if node.domain else attributes(node)
        if node.op_type == "Pad" and given.get("mode", b"constant") != b"constant":
            _drop_attribute(node, "value")
        elif not node.domain and (
            node.op_type == "Hardmax" or (node.op_type in _SOFTMAX and node.output[0] in read_in_bodies)
        ):
            nodes += _of_matrix(node, names)
            continue
        elif node.op_type == "BatchNormalization" and given.get("spatial") == 0:
            nodes += _product_and_sum(node, graph, tensors, names)
            continue
        nodes.append(node)
    kept = [*nodes]
    graph.ClearField("node")
    graph.node.extend(kept)


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    node.ClearField("attribute")
    node.attribute.extend(kept)


def _of_matrix(node: onnx.NodeProto, names: GraphEditor) -> list[onnx.NodeProto]:
    x, y = node.input[0], node.output[0]
    matrix, result, shape = (names.fresh_name(y + suffix) for suffix in ("_matrix", "_of_matrix", "_shape"))
    return [
        helper.make_node("Flatten", [x], [matrix], axis=int(attribute(node, "axis", 1))),
        helper.make_node(node.op_type, [matrix], [result], name=node.name, axis=1),
        helper.make_node("Shape", [x], [shape]),
        helper.make_node("Reshape", [result, shape], [y]),
    ]


def _product_and_sum(
    node: onnx.NodeProto, graph: onnx.GraphProto, tensors: dict[str, onnx.TensorProto], names: GraphEditor
) -> list[onnx.NodeProto]:
    if len(node.output) > 1 or not all(name in tensors for name in node.input[1:]):
        return [node]  # the converter refuses it
    gamma, beta, mean, variance = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
    gain = gamma / np.sqrt(variance.astype(np.float64) + attribute(node, "epsilon", 1e-5))
    scale, shift, product = (names.fresh_name(node.output[0] + suffix) for suffix in ("_gain", "_shift", "_product"))
    for name, value in ((scale, gain), (shift, beta - mean * gain)):
        graph.initializer.append(numpy_helper.from_array(value.astype(gamma.dtype), name))
    return [
        helper.make_node("Mul", [node.input[0], scale], [product], name=node.name),
        helper.make_node("Add", [product, shift], [node.output[0]]),
    ]


def keep_old_resize(graph: onnx.GraphProto) -> None:
    """Give Resize nodes that were raised from below opset 11, Upsample once, the attributes that keep what they do.

    The output at i is the input at i / scale, not at (i + 0.5) / scale - 0.5; "nearest" rounds that down, and up where
    it makes smaller, as onnxruntime does it for the old operators.
    """
    tensors = constant_tensors(graph)
    for node in graph.node:
        if node.op_type == "Resize":
            scales = tensors.get(node.input[2])
            smaller = scales is not None and (numpy_helper.to_array(scales) < 1).any()
            for name, value in (
                ("coordinate_transformation_mode", "asymmetric"),
                ("nearest_mode", "ceil" if smaller else "floor"),
            ):
                node.attribute.append(onnx.helper.make_attribute(name, value))
        for body in subgraphs(node):
            keep_old_resize(body)
