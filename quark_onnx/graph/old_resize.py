"""Resize as it was before opset 11, which onnx's version converter forgets."""

from __future__ import annotations

import onnx
from onnx import numpy_helper

from quark.onnx.graph.editor import constant_tensors, subgraphs

__all__ = ["keep_old_resize"]


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
