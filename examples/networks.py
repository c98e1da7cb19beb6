"""Small networks with random weights, in the form in which exporters write a detector and a transformer for text."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

SIDE, CLASSES, ANCHORS = 128, 10, 16 * 16  # of the detector
WORDS, WIDTH, HEADS, LAYERS, TOKENS = 1000, 64, 4, 2, 32  # of the transformer


def convolution(
    weights: list[TensorProto], name: str, source: str, shape: tuple[int, ...], stride: int
) -> list[NodeProto]:
    """Conv, and SiLU as exporters write it."""
    values = np.random.default_rng(len(weights)).normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    weights.append(numpy_helper.from_array(values.astype(np.float32), f"{name}_w"))
    pad = shape[2] // 2
    return [
        helper.make_node("Conv", [source, f"{name}_w"], [f"{name}_c"], name, strides=[stride] * 2, pads=[pad] * 4),
        helper.make_node("Sigmoid", [f"{name}_c"], [f"{name}_s"]),
        helper.make_node("Mul", [f"{name}_c", f"{name}_s"], [name]),
    ]


def detector() -> onnx.ModelProto:
    """Images (N, 3, 128, 128) to boxes and scores (N, 4 + 10, 256)."""
    weights = [
        numpy_helper.from_array(np.array([0, -1, ANCHORS]), "cells"),
        numpy_helper.from_array(np.float32(SIDE), "side"),
    ]
    nodes, source, channels = [], "images", 3
    for name, outputs, stride in (
        ("stem", 16, 2),
        ("down1", 32, 2),
        ("same1", 32, 1),
        ("down2", 64, 2),
        ("neck", 64, 1),
    ):
        nodes += convolution(weights, name, source, (outputs, channels, 3, 3), stride)
        source, channels = name, outputs
    for head, outputs in (("boxes", 4), ("scores", CLASSES)):
        nodes += convolution(weights, f"{head}_in", source, (32, channels, 3, 3), 1)
        nodes += convolution(weights, f"{head}_out", f"{head}_in", (outputs, 32, 1, 1), 1)[:2]  # its Sigmoid
        nodes.append(helper.make_node("Reshape", [f"{head}_out_s", "cells"], [f"{head}_flat"]))
    nodes.append(helper.make_node("Mul", ["boxes_flat", "side"], ["boxes_pixels"]))
    nodes.append(helper.make_node("Concat", ["boxes_pixels", "scores_flat"], ["detections"], "join", axis=1))
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])]
    outputs = [helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["N", 4 + CLASSES, ANCHORS])]
    graph = helper.make_graph(nodes, "detector", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def transformer() -> onnx.ModelProto:
    """Tokens and their attention mask, both int64 (N, 32), to logits (N, 2), as BERT does it."""
    random = np.random.default_rng(0)
    weights = [numpy_helper.from_array(np.array([0, TOKENS, HEADS, WIDTH // HEADS]), "heads")]
    weights.append(numpy_helper.from_array(np.array([0, TOKENS, WIDTH]), "joined"))
    weights.append(numpy_helper.from_array(np.array([1, 2]), "axes"))
    for name, value in (("one", 1.0), ("far", -10000.0), ("root", (WIDTH // HEADS) ** -0.5)):
        weights.append(numpy_helper.from_array(np.float32(value), name))
    nodes = []

    def add(op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op_type, inputs, [name], f"{name}_node", **attributes))
        return name

    def weight(name: str, *shape: int, around: float = 0.0) -> str:
        values = around + random.normal(size=shape) / np.sqrt(shape[0])
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def linear(source: str, name: str, inputs: int, outputs: int) -> str:
        product = add("MatMul", [source, weight(f"{name}_w", inputs, outputs)], f"{name}_product")
        return add("Add", [product, weight(f"{name}_b", outputs)], name)

    def normalized(source: str, name: str) -> str:
        scale = [weight(f"{name}_scale", WIDTH, around=1.0), weight(f"{name}_shift", WIDTH)]
        return add("LayerNormalization", [source, *scale], name, axis=-1)

    def by_heads(source: str, name: str, order: list[int]) -> str:
        parts = add("Reshape", [linear(source, name, WIDTH, WIDTH), "heads"], f"{name}_heads")
        return add("Transpose", [parts], f"{name}_turned", perm=order)

    mask = add("Unsqueeze", [add("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT), "axes"], "mask4")
    masked = add("Mul", [add("Sub", ["one", mask], "hidden"), "far"], "masked")
    words = add("Gather", [weight("table", WORDS, WIDTH), "input_ids"], "words")
    x = normalized(add("Add", [words, weight("places", TOKENS, WIDTH)], "placed"), "embedded")
    for n in range(LAYERS):
        query, key = by_heads(x, f"query{n}", [0, 2, 1, 3]), by_heads(x, f"key{n}", [0, 2, 3, 1])
        alike = add("Mul", [add("MatMul", [query, key], f"products{n}"), "root"], f"alike{n}")
        attention = add("Softmax", [add("Add", [alike, masked], f"seen{n}")], f"attention{n}", axis=-1)
        mixed = add("MatMul", [attention, by_heads(x, f"value{n}", [0, 2, 1, 3])], f"mixed{n}")
        joined = add("Reshape", [add("Transpose", [mixed], f"back{n}", perm=[0, 2, 1, 3]), "joined"], f"joined{n}")
        x = normalized(add("Add", [linear(joined, f"project{n}", WIDTH, WIDTH), x], f"sum{n}"), f"norm{n}")
        up = add("Relu", [linear(x, f"up{n}", WIDTH, 4 * WIDTH)], f"relu{n}")
        x = normalized(add("Add", [linear(up, f"down{n}", 4 * WIDTH, WIDTH), x], f"total{n}"), f"out{n}")
    mean = add("ReduceMean", [x], "mean", axes=[1], keepdims=0)
    linear(mean, "logits", WIDTH, 2)
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N", TOKENS]) for name in names]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])]
    graph = helper.make_graph(nodes, "transformer", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
