"""The operators of random models: each draws one and writes it, or gives False where none fits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from reference.graph_in_drawing import GraphInDrawing, Shape

__all__ = ["OTHERS", "QUANTIZED"]


def _broadcast(g: GraphInDrawing, op: str) -> bool:
    x = g.tensor()
    alike = [name for name, shape in g.shapes.items() if shape == g.shapes[x]]
    if g.chance(0.4) or not alike:  # a constant along any axes
        shape = tuple(size if g.chance(0.5) else 1 for size in g.shapes[x])
        shape = shape[g.count(0, len(shape)) :] if g.chance(0.5) else shape
        value = g.floats(*shape)
        other = g.constant(np.sign(value) * (0.5 + abs(value)) if op == "Div" else value)
    elif op == "Div":
        return False
    else:
        other = str(g.one_of(alike))
    reads = [x, other] if op == "Div" or g.chance(0.7) else [other, x]
    g.node(op, reads)
    return True


def _conv(g: GraphInDrawing, *, transposed: bool = False) -> bool:
    x = g.tensor(3, 4, 5)
    if x is None:
        return False
    channels, *sizes = g.shapes[x][1:]
    groups = int(g.one_of([d for d in range(1, channels + 1) if channels % d == 0]))
    kernel = [g.count(1, min(3, size)) for size in sizes]
    outputs = g.count(1, 3)
    attributes: dict[str, object] = {"group": groups} if groups > 1 or g.chance(0.5) else {}
    if g.chance(0.5):
        attributes["strides"] = [g.count(1, 2) for _ in sizes]
    if g.chance(0.2):
        attributes["dilations"] = [2 if 2 * (k - 1) < s else 1 for k, s in zip(kernel, sizes, strict=True)]
    if g.chance(0.3) and "dilations" not in attributes:  # onnxruntime does not run both
        attributes["auto_pad"] = g.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
        if transposed:
            attributes["auto_pad"] = "VALID"
    elif g.chance(0.6):
        attributes["pads"] = [g.count(0, k - 1) for _ in range(2) for k in kernel]
    if transposed and "strides" in attributes and g.chance(0.5):
        attributes["output_padding"] = [g.count(0, s - 1) for s in attributes["strides"]]  # type: ignore[attr-defined]
    if g.chance(0.5):
        attributes["kernel_shape"] = kernel
    fan_in = channels // groups * math.prod(kernel)
    shape = (channels, outputs, *kernel) if transposed else (outputs * groups, channels // groups, *kernel)
    reads = [x, g.weight(*shape, fan_in=fan_in)]
    if g.chance(0.6):
        reads.append(g.weight(outputs * groups, fan_in=1))
    y = g.node("ConvTranspose" if transposed else "Conv", reads, **attributes)
    if g.chance(0.3):
        scale, *rest = (g.weight(outputs * groups, fan_in=1) for _ in range(3))
        variance = g.constant(abs(g.floats(outputs * groups)) + np.float32(0.5))
        g.node("BatchNormalization", [y, scale, *rest, variance])
    return True


def _pool(g: GraphInDrawing, op: str) -> bool:
    x = g.tensor(3, 4)
    if x is None:
        return False
    sizes = g.shapes[x][2:]
    kernel = [g.count(1, min(3, size)) for size in sizes]
    attributes: dict[str, object] = {"kernel_shape": kernel}
    if g.chance(0.6):
        attributes["strides"] = [g.count(1, 2) for _ in sizes]
    if g.chance(0.2):
        attributes["auto_pad"] = g.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif g.chance(0.5):
        attributes["pads"] = [g.count(0, (k - 1) // 2) for _ in range(2) for k in kernel]
    # Not where the last window would begin behind the data: onnxruntime leaves that out, and infers a shape with it.
    strides = attributes.get("strides", [1] * len(sizes))
    steps = zip(sizes, kernel, strides, strict=True)  # type: ignore[call-overload]
    is_inside = all(-(-(n - k) // s) * s < n for n, k, s in steps)
    if g.opset >= 10 and is_inside and "pads" not in attributes and g.chance(0.3):
        attributes["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.5):
        attributes["count_include_pad"] = 1
    g.node(op, [x], 2 if op == "MaxPool" and len(sizes) == 2 and g.chance(0.1) else 1, **attributes)
    return True


def _gemm(g: GraphInDrawing) -> bool:
    x = g.tensor(2)
    if x is None:
        return False
    rows, inputs = g.shapes[x]
    turned = g.chance(0.1)
    if turned:
        rows, inputs = inputs, rows
    outputs, trans_b = g.count(1, 5), g.chance(0.5)
    weight = g.weight(*((outputs, inputs) if trans_b else (inputs, outputs)), fan_in=inputs)
    reads = [x, weight]
    if g.chance(0.7):
        shape = g.one_of([(outputs,), (outputs,), (1, outputs), (), (1,), (rows, outputs)])
        reads.append(g.constant(g.floats(*shape)))  # type: ignore[misc]
    elif g.opset < 11:
        reads.append(g.constant(g.floats(outputs)))
    attributes: dict[str, object] = {"transB": int(trans_b)} if trans_b or g.chance(0.3) else {}
    attributes |= {"transA": 1} if turned else {}
    attributes |= {"alpha": 0.5} if g.chance(0.2) else {}
    attributes |= {"beta": 2.0} if g.chance(0.2) else {}
    g.node("Gemm", reads, **attributes)
    return True


def _matmul(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    shape = g.shapes[x]
    if g.chance(0.15):  # of two activations
        y = g.node("Transpose", [x], perm=[*range(len(shape) - 2), len(shape) - 1, len(shape) - 2])
        product = g.node("MatMul", [x, y])
        g.node("Mul", [product, g.constant(np.float32(1 / shape[-1]))])
    elif g.chance(0.15):
        g.node("MatMul", [g.weight(g.count(1, 5), shape[-2], fan_in=shape[-2]), x])
    else:
        y = g.node("MatMul", [x, g.weight(shape[-1], outputs := g.count(1, 5), fan_in=shape[-1])])
        if g.chance(0.4):
            bias = g.constant(g.floats(outputs))
            g.node("Add", [y, bias] if g.chance(0.7) else [bias, y])
    return True


def _clip(g: GraphInDrawing) -> bool:
    x = g.tensor()
    low, high = sorted(np.float32(v) for v in g.random.choice([-2, -1, -0.5, 0, 0.5, 1, 3, 6], 2, replace=False))
    if g.opset < 11:
        g.node("Clip", [x], **({"min": float(low)} if g.chance(0.8) else {}), max=float(high))
    else:
        bounds = [g.constant(low) if g.chance(0.8) else "", g.constant(high) if g.chance(0.8) else ""]
        while bounds and not bounds[-1]:
            bounds.pop()
        g.node("Clip", [x, *bounds])
    return True


def _concat(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    axis = g.count(1, len(g.shapes[x]) - 1)

    def rest(shape: Shape) -> Shape:
        return shape[:axis] + shape[axis + 1 :]

    alike = [n for n, s in g.shapes.items() if len(s) == len(g.shapes[x]) and rest(s) == rest(g.shapes[x])]
    parts = [x, *(str(g.one_of(alike)) for _ in range(g.count(0, 2)))]
    if g.chance(0.15):
        parts.append(g.constant(g.floats(*g.shapes[x])))
    g.node("Concat", parts, axis=axis if g.opset < 11 or g.chance(0.7) else axis - len(g.shapes[x]))
    return True


def _gather(g: GraphInDrawing) -> bool:
    ids = [name for name, (kind, _) in g.inputs.items() if kind == TensorProto.INT64]
    if ids and g.chance(0.5):
        g.node("Gather", [g.weight(7, g.count(2, 5), fan_in=1), str(g.one_of(ids))])
        return True
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    axis = g.count(1, len(g.shapes[x]) - 1)
    size = g.shapes[x][axis]
    shape = (g.count(1, 3),) if len(g.shapes[x]) < 5 and g.chance(0.8) else ()
    g.node("Gather", [x, g.constant(g.random.integers(-size if g.opset >= 11 else 0, size, shape))], axis=axis)
    return True


def _normalization(g: GraphInDrawing, op: str) -> bool:
    if op == "InstanceNormalization":
        x = g.tensor(3, 4)
        if x is None or math.prod(g.shapes[x][2:]) < 3:
            return False
        channels = g.shapes[x][1]
        g.node(op, [x, g.weight(channels, fan_in=1), g.weight(channels, fan_in=1)], epsilon=1e-2)
        return True
    x = g.tensor(2, 3, 4)
    if x is None or g.opset < 17:
        return False
    axis = g.count(1, len(g.shapes[x]) - 1)
    shape = g.shapes[x][axis:]
    if math.prod(shape) < 3:
        return False
    reads = [x, g.weight(*shape, fan_in=1), *([g.weight(*shape, fan_in=1)] if g.chance(0.7) else [])]
    g.node(op, reads, axis=axis if g.chance(0.5) else axis - len(g.shapes[x]), epsilon=1e-2)
    return True


def _pad(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    shape = g.shapes[x]
    mode = str(g.one_of(["constant", "constant", "reflect", "edge"]))
    axes = [a for a in range(1, len(shape)) if g.chance(0.6)] or [len(shape) - 1]
    most = {a: min(2, shape[a] - 1) for a in axes}
    least = -1 if mode == "constant" and g.chance(0.2) else 0
    pads = [{a: g.count(least if shape[a] > 2 else 0, most[a]) for a in axes} for _ in range(2)]
    value = g.floats() if g.chance(0.3) else np.float32(0)
    whole = [side.get(a, 0) for side in pads for a in range(len(shape))]
    if g.opset < 11:
        g.node("Pad", [x], mode=mode, pads=whole, value=float(value))
        return True
    if g.opset >= 18 and g.chance(0.5):
        named = axes if g.chance(0.7) else [a - len(shape) for a in axes]
        values = [side[a] for side in pads for a in axes]
        last = [g.constant(value) if mode == "constant" else "", g.constant(np.array(named))]
        g.node("Pad", [x, g.constant(np.array(values)), *last], mode=mode)
        return True
    reads = [x, g.constant(np.array(whole)), *([g.constant(value)] if mode == "constant" and g.chance(0.6) else [])]
    g.node("Pad", reads, mode=mode)
    return True


def _reshape(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    shape = g.shapes[x]
    rest = math.prod(shape[1:])
    if g.chance(0.2):
        g.node("Flatten", [x], axis=g.count(1, len(shape) - 1))
        return True
    factors = [d for d in range(1, rest + 1) if rest % d == 0]
    first = int(g.one_of(factors))
    target = g.one_of(
        [[0, -1], [shape[0], -1], [0, first, -1], [-1, first, rest // first], [0, 0, -1], [0, first, 1, -1]]
    )
    g.node("Reshape", [x, g.constant(np.array(target))])
    return True


def _resize(g: GraphInDrawing) -> bool:
    x = g.tensor(4)
    if x is None or g.opset < 11:
        return False
    shape = g.shapes[x]
    mode = str(g.one_of(["nearest", "linear", "cubic"]))
    ways = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes: dict[str, object] = {"mode": mode, "coordinate_transformation_mode": g.one_of(ways)}
    if mode == "nearest":
        attributes["nearest_mode"] = g.one_of(["round_prefer_floor", "floor", "ceil", "round_prefer_ceil"])
    roi = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else ""
    if g.chance(0.5):
        scales = np.array([1, 1, g.one_of([0.5, 1, 1.5, 2]), g.one_of([0.5, 1, 1.5, 2])], np.float32)
        if any(size * scale < 1 for size, scale in zip(shape, scales, strict=True)):
            return False
        g.node("Resize", [x, roi, g.constant(scales)], **attributes)
    else:
        sizes = np.array([*shape[:2], *(g.count(1, 6) for _ in range(2))])
        scales_too = g.constant(np.zeros(0, np.float32)) if g.opset < 13 else ""
        g.node("Resize", [x, roi, scales_too, g.constant(sizes)], **attributes)
    return True


def _split(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    axes = [a for a in range(1, len(g.shapes[x])) if g.shapes[x][a] > 1]
    if not axes:
        return False
    axis = int(g.one_of(axes))
    size = g.shapes[x][axis]
    first = g.count(1, size - 1)
    if g.opset < 13:
        g.node("Split", [x], 2, axis=axis, split=[first, size - first])
    elif g.opset >= 18 and g.chance(0.4):
        g.node("Split", [x], 2, axis=axis, num_outputs=2)
    else:
        g.node("Split", [x, g.constant(np.array([first, size - first]))], 2, axis=axis)
    return True


def _squeeze(g: GraphInDrawing) -> bool:
    ones = [n for n, s in g.shapes.items() if len(s) > 2 and 1 in s[1:]]
    if ones and g.chance(0.7):
        x = str(g.one_of(ones))
        g.axes_node("Squeeze", x, [g.shapes[x].index(1, 1)], 13)
        return True
    return _unsqueeze(g)


def _unsqueeze(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3)
    if x is None:
        return False
    axis = g.count(1, len(g.shapes[x]))
    g.axes_node("Unsqueeze", x, [axis if g.opset < 11 or g.chance(0.7) else axis - len(g.shapes[x]) - 1], 13)
    return True


def _where(g: GraphInDrawing) -> bool:
    x = g.tensor()
    alike = [name for name, shape in g.shapes.items() if shape == g.shapes[x]]
    other = str(g.one_of(alike)) if g.chance(0.5) else g.constant(g.floats(*g.shapes[x][1:]))
    condition = g.constant(g.random.random(g.shapes[x][1:]) < 0.5)
    if g.chance(0.3):
        condition = g.node("Greater", [x, g.constant(np.float32(0))])
        other = g.constant(np.float32(0))  # without a step, which no number of bits makes small
        g.node("Where", [condition, x, other])
        return True
    g.node("Where", [condition, x, other] if g.chance(0.5) else [condition, other, x])
    return True


def _alone(g: GraphInDrawing, op: str, **attributes: object) -> bool:
    g.node(op, [g.tensor()], **attributes)
    return True


def _transpose(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    rank = len(g.shapes[x])
    perm = [0, *(1 + g.random.permutation(rank - 1))] if g.chance(0.9) else list(g.random.permutation(rank))
    return _alone(g, "Transpose") if g.chance(0.05) else bool(g.node("Transpose", [x], perm=[int(p) for p in perm]))


def _softmax(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    axis = g.count(1, len(g.shapes[x]) - 1)
    g.node("Softmax", [x], axis=axis if g.opset < 11 or g.chance(0.5) else axis - len(g.shapes[x]))
    return True


def _arg_max(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None:
        return False
    g.node("ArgMax", [x], axis=g.count(1, len(g.shapes[x]) - 1), keepdims=g.count(0, 1))
    return True


def _global_pool(g: GraphInDrawing) -> bool:
    x = g.tensor(3, 4)
    return x is not None and bool(g.node("GlobalAveragePool", [x]))


def _reduce_mean(g: GraphInDrawing) -> bool:
    x = g.tensor(3, 4)
    if x is None:
        return False
    g.axes_node("ReduceMean", x, [g.count(1, len(g.shapes[x]) - 1)], 18, keepdims=g.count(0, 1))
    return True


def _slice(g: GraphInDrawing) -> bool:
    x = g.tensor(2, 3, 4)
    if x is None or g.opset < 10:
        return False
    axis = g.count(1, len(g.shapes[x]) - 1)
    start = g.count(0, g.shapes[x][axis] - 1)
    reads = [g.constant(np.array([v])) for v in (start, g.one_of([g.shapes[x][axis], 2**31 - 1]), axis)]
    g.node("Slice", [x, *reads])
    return True


def _embed(g: GraphInDrawing) -> bool:
    if "ids32" in g.inputs or g.opset < 11:
        return False
    g.inputs["ids32"] = (TensorProto.INT32, (2, 4))
    size = g.count(3, 5)
    reads = ["ids32", "", g.constant(g.floats(7, size)), g.constant(g.floats(6, size)), "",
             g.constant(g.floats(size)), g.constant(g.floats(size))]  # fmt: skip
    makes = [g.name("embedded"), g.name("mask")]
    g.nodes.append(helper.make_node("EmbedLayerNormalization", reads, makes, domain="com.microsoft", name="embed"))
    g.shapes[makes[0]] = (2, 4, size)
    return True


def _if(g: GraphInDrawing) -> bool:
    """Two branches that read what is outside, and have constants of their own."""
    x = g.tensor()
    branches = []
    for op in (g.one_of(["Relu", "Tanh"]), g.one_of(["Mul", "Add"])):
        out = g.name(f"branch_{op}")
        constant = numpy_helper.from_array(g.floats(), g.name("inner"))
        reads = [x] if op in ("Relu", "Tanh") else [x, constant.name]
        value = helper.make_tensor_value_info(out, TensorProto.FLOAT, g.shapes[x])
        inner = helper.make_graph([helper.make_node(op, reads, [out])], "b", [], [value], [constant])
        branches.append(inner)
    total = g.node("ReduceSum", [x], keepdims=0)
    condition = g.node("Greater", [total, g.constant(np.float32(0))])
    out = g.name("t")
    branches_named = {"then_branch": branches[0], "else_branch": branches[1]}
    g.nodes.append(helper.make_node("If", [condition], [out], name=f"if_{len(g.nodes)}", **branches_named))
    g.shapes[out] = g.shapes[x]
    return True


QUANTIZED: dict[str, Callable[[GraphInDrawing], bool]] = {
    "Add": lambda g: _broadcast(g, "Add"),
    "ArgMax": _arg_max,
    "AveragePool": lambda g: _pool(g, "AveragePool"),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": lambda g: _conv(g, transposed=True),
    "EmbedLayerNormalization": _embed,
    "Gather": _gather,
    "Gelu": lambda g: g.opset >= 20 and _alone(g, "Gelu", approximate=g.one_of(["none", "tanh"])),
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "InstanceNormalization": lambda g: _normalization(g, "InstanceNormalization"),
    "LayerNormalization": lambda g: _normalization(g, "LayerNormalization"),
    "LeakyRelu": lambda g: _alone(g, "LeakyRelu", alpha=float(g.one_of([0.01, 0.2, 1.5]))),  # type: ignore[arg-type]
    "MatMul": _matmul,
    "MaxPool": lambda g: _pool(g, "MaxPool"),
    "Mul": lambda g: _broadcast(g, "Mul"),
    "Pad": _pad,
    "Relu": lambda g: _alone(g, "Relu"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Sigmoid": lambda g: _alone(g, "Sigmoid"),
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tanh": lambda g: _alone(g, "Tanh"),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
OTHERS: dict[str, Callable[[GraphInDrawing], bool]] = {
    "Sub": lambda g: _broadcast(g, "Sub"),
    "Div": lambda g: _broadcast(g, "Div"),
    "Max": lambda g: _broadcast(g, "Max"),
    "Elu": lambda g: _alone(g, "Elu"),
    "Erf": lambda g: _alone(g, "Erf"),
    "Identity": lambda g: _alone(g, "Identity"),
    "HardSwish": lambda g: g.opset >= 14 and _alone(g, "HardSwish"),
    "If": _if,
    "ReduceMean": _reduce_mean,
    "Slice": _slice,
}
