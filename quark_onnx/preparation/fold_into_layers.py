"""What stands around a layer and can be a part of it: BatchNormalization, constants per channel, zeros around, numbers
in front."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.graph.editor import GraphEditor, attribute, attributes

__all__ = ["fold_into_layers", "fold_numbers_in_front", "fold_padding"]

_Vector: TypeAlias = NDArray[np.float64]  # (outputs,)

_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def fold_into_layers(editor: GraphEditor) -> None:
    """Multiply into Conv, ConvTranspose and Gemm, with constant weight and bias, what alone reads their outputs:
    BatchNormalization at inference, Mul, Div, Add and Sub with one constant, or one per output channel.

    Gemm has alpha = beta = 1. A constant that lies along another axis is none per channel, whatever its length.
    """
    for node in editor.graph.node:
        if node.op_type in _LAYERS and not node.domain:
            while _fold_reader(editor, node):
                pass
    editor.sweep()


def _fold_reader(editor: GraphEditor, node: onnx.NodeProto) -> bool:
    after, weight, bias = editor.sole_reader(node.output[0]), editor.constant(node, 1), editor.constant(node, 2)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if after is None or after.domain or weight is None or (has_bias and bias is None):
        return False
    groups = round(attribute(node, "group", 1))
    shape = _by_output(node, weight, groups).shape
    outputs = shape[0] * shape[2]
    if has_bias and (bias is None or bias.shape != (outputs,)):
        return False
    rank = 2 if node.op_type == "Gemm" else weight.ndim
    affine = _affine(editor, after, node.output[0], rank, outputs)
    if affine is None:
        return False
    gain, shift, like = affine
    with np.errstate(all="ignore"):
        new_weight = _by_output(node, weight, groups) * gain.reshape(shape[0], 1, shape[2], 1)
        new_bias = (0.0 if bias is None else bias) * gain + shift
        if not all(np.isfinite(values.astype(np.float32)).all() for values in (new_weight, new_bias)):
            return False
    if not (gain == 1).all():
        editor.set_constant(node, 1, _as_weight(node, new_weight, weight.shape), like=node.input[1])
    if has_bias or new_bias.any():
        if len(node.input) == 3 and not has_bias:
            node.input.pop()
        editor.set_constant(node, 2, new_bias, like=node.input[2] if has_bias else like)
    editor.absorb(node, after)
    return True


def _by_output(node: onnx.NodeProto, weight: NDArray[Any], groups: int) -> NDArray[np.float64]:
    """A weight as (groups, inputs of a group, outputs of a group, taps); what comes before the outputs may be one."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        weight = weight.T
    if node.op_type == "ConvTranspose":
        return weight.reshape(groups, -1, weight.shape[1], math.prod(weight.shape[2:])).astype(np.float64)
    return weight.reshape(1, 1, len(weight), -1).astype(np.float64)


def _as_weight(node: onnx.NodeProto, values: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The inverse."""
    if node.op_type == "Gemm" and not attribute(node, "transB", 0):
        return values.reshape(shape[::-1]).T
    return values.reshape(shape)


def _affine(
    editor: GraphEditor, node: onnx.NodeProto, tensor: str, rank: int, outputs: int
) -> tuple[_Vector, _Vector, str] | None:
    """What a node makes of each channel x of a tensor as gain * x + shift, and a name for the shift."""
    if node.op_type == "BatchNormalization":
        values = [editor.constant(node, index) for index in range(1, 5)]
        if any(node.output[1:]) or attribute(node, "training_mode", 0) or node.input[0] != tensor:
            return None
        gamma, beta, mean, variance = (None if v is None or v.shape != (outputs,) else _double(v) for v in values)
        if gamma is None or beta is None or mean is None or variance is None:
            return None
        with np.errstate(all="ignore"):
            gain = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return gain, beta - mean * gain, node.input[2]
    if node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    index = 1 - list(node.input).index(tensor)
    constant = editor.constant(node, index)
    if constant is None or constant.ndim > rank:
        return None
    lengths = (1,) * (rank - constant.ndim) + constant.shape
    if lengths[1] not in (1, outputs) or math.prod(lengths) != lengths[1]:
        return None
    c, one = np.broadcast_to(_double(constant).reshape(-1), (outputs,)), np.ones(outputs)
    with np.errstate(all="ignore"):
        match node.op_type, index:
            case "Mul", _:
                return c, 0 * one, node.input[index]
            case "Div", 1:
                return 1 / c, 0 * one, node.input[index]
            case "Add", _:
                return one, c, node.input[index]
            case "Sub", 1:
                return one, -c, node.input[index]
            case "Sub", 0:
                return -one, c, node.input[index]
    return None


def _double(values: NDArray[Any]) -> _Vector:
    return values.astype(np.float64)


@dataclass(frozen=True)
class _Number:
    """A node that makes gain * x + shift of all values x of a tensor, for one reader."""

    node: onnx.NodeProto
    tensor: str
    gain: float
    shift: float


def fold_numbers_in_front(editor: GraphEditor) -> None:
    """Multiply into Conv, ConvTranspose and Gemm, with constant weight and bias, the number that all values of their
    input are multiplied by, where they alone read it; add to the bias what a number makes that is added to them.

    Each tensor less is a quantizer less. A number that is added before a layer puts zeros around stays, and what is
    multiplied in front of it goes in all the same: a * x + b is a * (x + b / a). Gemm has alpha = beta = 1.
    """
    makers = {node.output[0]: node for node in editor.graph.node if node.output}
    for node in editor.graph.node:
        if node.op_type not in _LAYERS or node.domain:
            continue
        weight = editor.constant(node, 1)
        while weight is not None and (number := _number(editor, node.input[0], weight.ndim, makers)) is not None:
            adds = number.shift != 0 and not _is_the_same_everywhere(node)
            if not (_compose(editor, number, weight.ndim, makers) if adds else _take(editor, node, number)):
                break
    editor.sweep()


def _number(editor: GraphEditor, tensor: str, rank: int, makers: Mapping[str, onnx.NodeProto]) -> _Number | None:
    node = makers.get(tensor)
    if node is None or node.domain or node.op_type not in ("Mul", "Div", "Add", "Sub"):
        return None
    if editor.sole_reader(tensor) is None:
        return None
    for name, constant in ((node.input[0], 1), (node.input[1], 0)):
        values = editor.constant(node, constant)
        if values is not None and values.size == 1:
            affine = _affine(editor, node, name, rank, 1)
            if affine is not None:
                return _Number(node, name, float(affine[0][0]), float(affine[1][0]))
    return None


def _is_the_same_everywhere(node: onnx.NodeProto) -> bool:
    """Whether each of a layer's outputs reads a value for each weight, and no zeros around."""
    given = attributes(node)
    return node.op_type == "Gemm" or (
        node.op_type == "Conv"
        and given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
        and not any(given.get("pads", ()))
    )


def _compose(editor: GraphEditor, number: _Number, rank: int, makers: dict[str, onnx.NodeProto]) -> bool:
    """Make one addition of a number and the one before it, or an addition and then a multiplication."""
    first = _number(editor, number.tensor, rank, makers)
    gain = 0.0 if first is None else first.gain * number.gain
    if first is None or gain == 0:
        return False
    shift = np.float32((first.shift * number.gain + number.shift) / gain)
    if not np.isfinite([shift, np.float32(gain)]).all():
        return False
    if gain == 1:
        _write(editor, number.node, "Add", first.tensor, shift)
        editor.drop(first.node)
        return True
    between = editor.fresh_name(number.tensor)  # it has other values now
    _write(editor, first.node, "Add", first.tensor, shift)
    first.node.output[0] = between
    makers[between] = first.node
    _write(editor, number.node, "Mul", between, np.float32(gain))
    return True


def _write(editor: GraphEditor, node: onnx.NodeProto, operator: str, tensor: str, number: np.float32) -> None:
    like = next(name for name in node.input if name in editor.initializers)
    node.op_type = operator
    for index in (0, 1):
        editor.set_input(node, index, tensor)
    editor.set_constant(node, 1, np.array(number), like=like)


def _take(editor: GraphEditor, node: onnx.NodeProto, number: _Number) -> bool:
    weight, bias = editor.constant(node, 1), editor.constant(node, 2)
    has_bias = len(node.input) > 2 and bool(node.input[2])
    if weight is None or (has_bias and bias is None):
        return False
    values = _by_output(node, weight, round(attribute(node, "group", 1)))
    with np.errstate(all="ignore"):
        new_weight = _as_weight(node, values * number.gain, weight.shape)
        new_bias = np.zeros(1) if bias is None else _double(bias)
        if number.shift:
            new_bias = new_bias + number.shift * values.sum(axis=(1, 3)).ravel()
        if not all(np.isfinite(new.astype(np.float32)).all() for new in (new_weight, new_bias)):
            return False
    if number.gain != 1:
        editor.set_constant(node, 1, new_weight, like=node.input[1])
    if number.shift:
        if len(node.input) == 3 and not has_bias:
            node.input.pop()
        editor.set_constant(node, 2, new_bias, like=node.input[2] if has_bias else f"{node.output[0]}_bias")
    editor.set_input(node, 0, number.tensor)
    editor.drop(number.node)
    return True


def fold_padding(editor: GraphEditor) -> None:
    """Let Conv add the zeros that a Pad puts around its input's spatial axes.

    The Pad has pads of all axes, as `preparation/pads.py` writes them.
    """
    pads_of = {node.output[0]: node for node in editor.graph.node if node.op_type == "Pad" and not node.domain}
    for node in editor.graph.node:
        pad = pads_of.get(node.input[0]) if node.op_type == "Conv" and not node.domain else None
        while pad is not None and _fold_pad(editor, node, pad):
            pad = pads_of.get(node.input[0])


def _fold_pad(editor: GraphEditor, node: onnx.NodeProto, pad: onnx.NodeProto) -> bool:
    weight = editor.initializers.get(node.input[1])
    given = {item.name: onnx.helper.get_attribute_value(item) for item in (*pad.attribute, *node.attribute)}
    if weight is None or given.get("mode", b"constant") != b"constant":
        return False
    rank = len(weight.dims)
    zeros = _zeros(editor, pad, rank)
    if zeros is None or given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return False
    begins, ends = zeros[:rank], zeros[rank:]
    if min(zeros) < 0 or any(begins[:2] + ends[:2]):
        return False
    before = given.get("pads") if given.get("auto_pad", b"NOTSET") == b"NOTSET" else None
    added = [a + b for a, b in zip(before or [0] * (2 * rank - 4), begins[2:] + ends[2:], strict=True)]
    kept = [item for item in node.attribute if item.name not in ("pads", "auto_pad")]
    node.ClearField("attribute")
    node.attribute.extend([*kept, onnx.helper.make_attribute("pads", added)])
    editor.set_input(node, 0, pad.input[0])
    return True


def _zeros(editor: GraphEditor, pad: onnx.NodeProto, rank: int) -> list[int] | None:
    """The zeros that a Pad puts around; None where it is something else, or not known."""
    tensors = [editor.initializers.get(name) if name else None for name in pad.input[1:]]
    if not tensors or tensors[0] is None or any(pad.input[3:4]):
        return None
    if any(pad.input[2:3]) and (tensors[1] is None or numpy_helper.to_array(tensors[1]).any()):
        return None
    pads: list[int] = numpy_helper.to_array(tensors[0]).tolist()
    return pads if len(pads) == 2 * rank else None
