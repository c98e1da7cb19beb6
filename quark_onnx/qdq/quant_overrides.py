"""What single tensors have of their own, in the form of onnxruntime's option TensorQuantOverrides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnxruntime.quantization import QuantType

from quark.onnx.config.spec import ScaleType
from quark.onnx.qdq.tensor_roles import channel_axis, tensor_roles

__all__ = ["Overrides", "TensorFormat", "format_overrides", "given_overrides"]

Overrides: TypeAlias = dict[str, list[dict[str, Any]]]  # by tensor: one dict, or one per channel


@dataclass(frozen=True)
class TensorFormat:
    """The integers that a tensor is quantized to.

    Attributes:
        quant_type: QUInt8, QInt8, QUInt16 or QInt16; of weights also QInt4 or QUInt4.
        symmetric: zero point in the middle of the type; of QInt8 and QInt16 the least integer is not used.
        per_channel: one scale per output channel; False of activations.
        block: one scale per output channel and block of so many inputs, where that can be: MatMul and Gemm; 0: not.
        scales: which values a scale can have.
        reaches_beyond: of an activation: its range may go beyond what a Relu or Clip that makes it lets through, which
            then cannot be left to the ends of the range.
    """

    quant_type: QuantType
    symmetric: bool
    per_channel: bool = False
    block: int = 0
    scales: ScaleType = ScaleType.Float32
    reaches_beyond: bool = False


def format_overrides(
    graph: onnx.GraphProto, formats: Mapping[str, TensorFormat], weights: TensorFormat, one_scale: Collection[str]
) -> Overrides:
    """The entries of the tensors whose format onnxruntime's quantizer would not choose by itself.

    Args:
        formats: of the tensors that have one of their own.
        weights: the format of all other weights.
        one_scale: the weights that cannot have one scale per channel.
    """
    constants = {t.name: tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    known = constants.keys() | {v.name for v in (*graph.input, *graph.value_info, *graph.output)}
    overrides = {name: [_entry(own, None)] for name, own in formats.items() if name in known}
    for node in graph.node:
        roles = tensor_roles(node, constants)
        for name in roles.weights:
            chosen = formats.get(name, weights)
            # By itself, the quantizer takes every weight with one scale per channel as symmetric.
            if name in formats or (chosen.per_channel and not chosen.symmetric):
                axis = None if name in one_scale else channel_axis(node, constants[name])
                overrides[name] = [_entry(chosen, axis)]
        if roles.bias is not None and roles.bias in formats:
            overrides[roles.bias] = [_entry(formats[roles.bias], 0)]
    return overrides


def given_overrides(given: Mapping[str, Sequence[Mapping[str, Any]]]) -> Overrides:
    """A user's entries, plain values, as the quantizer wants them: types as QuantType, numbers as arrays."""
    return {name: [_as_arrays(entry) for entry in entries] for name, entries in given.items()}


def _entry(tensor: TensorFormat, axis: int | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"quant_type": tensor.quant_type, "symmetric": tensor.symmetric}
    return entry | {"axis": axis} if tensor.per_channel and axis is not None else entry


def _as_arrays(entry: Mapping[str, Any]) -> dict[str, Any]:
    converted = dict(entry)
    for key in ("scale", "rmin", "rmax"):
        if key in entry:
            converted[key] = np.array(entry[key], np.float32)
    if "zero_point" in entry:
        converted["zero_point"] = np.array(entry["zero_point"])
    if "quant_type" in entry:
        converted["quant_type"] = QuantType[entry["quant_type"]]
    return converted
