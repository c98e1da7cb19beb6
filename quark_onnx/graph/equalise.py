"""Cross-layer equalisation: the ranges of a channel's weights in two layers meet, and the model computes the same.

Nagel et al. 2019, arXiv 1906.04721, section 4.1. The factors are powers of two, by which floats are scaled without
rounding: the outputs of the model keep every bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.graph.editor import constant_tensors
from quark.onnx.graph.layer_pairs import LayerPair, layer_pairs
from quark.onnx.graph.row_layout import RowLayout
from quark.onnx.graph.weight_layers import ConvAttributes, WeightLayer
from quark.onnx.quantization.config.algorithm import CLEConfig

__all__ = ["PairReport", "equalise"]

_MOST_STEPS = 100  # of cle_steps=-1
_Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What was done to two layers that follow each other.

    Attributes:
        head, tail: the nodes; the head's outputs were divided, the tail's inputs multiplied.
        channels: outputs of the head.
        scaled: how many of them have a factor other than 1.
        factors: the smallest and the largest.
        reason: why the pair was left alone; "" if it was not.
    """

    head: str
    tail: str
    channels: int = 0
    scaled: int = 0
    factors: tuple[float, float] = (1.0, 1.0)
    reason: str = ""


def equalise(
    model: onnx.ModelProto, quantized: Collection[str], config: CLEConfig
) -> tuple[onnx.ModelProto, tuple[PairReport, ...]]:
    """A copy of a prepared float model with other weights and biases that computes the same; and all pairs found.

    Args:
        quantized: the nodes that will be quantized; only pairs of these are equalised.
    """
    found = tuple(_in_scope(pair, quantized) for pair in layer_pairs(model))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = constant_tensors(result.graph)
    pairs = [_Pair(pair, tensors, config) for pair in found if not pair.reason]
    for _ in range(_MOST_STEPS if config.cle_steps < 0 else config.cle_steps):
        change = sum(pair.step() for pair in pairs)
        if change == 0 or (config.cle_steps < 0 and change < config.cle_total_layer_diff_threshold):
            break
    done = iter(pairs)
    return result, tuple(
        PairReport(head=pair.head.node_name, tail=pair.tail.node_name, reason=pair.reason)
        if pair.reason
        else next(done).report()
        for pair in found
    )


def _in_scope(pair: LayerPair, quantized: Collection[str]) -> LayerPair:
    for layer in (pair.head, pair.tail):
        if not pair.reason and layer.node_name not in quantized:
            return replace(pair, reason=f"{layer.node_name!r} is not quantized")
    return pair


class _Pair:
    """Two layers whose weights are in `tensors`."""

    def __init__(self, pair: LayerPair, tensors: dict[str, onnx.TensorProto], config: CLEConfig) -> None:
        self._pair, self._tensors, self._config = pair, tensors, config
        self._outputs, self._inputs = pair.head.layout, _input_layout(pair.tail)
        self._total: _Array = np.ones(self._outputs.outputs, np.float32)

    def step(self) -> float:
        """Let the ranges meet; the mean change of the weights of both layers, added."""
        pair, before = self._pair, [self._value(layer.weight) for layer in (self._pair.head, self._pair.tail)]
        factors = self._factors(*before)
        self._total *= factors
        of_head = self._outputs.rows(before[0]) / factors[:, None]
        of_tail = self._inputs.rows(before[1]) * np.repeat(factors, pair.repeat)[:, None]
        after = [self._outputs.values(of_head), self._inputs.values(of_tail)]
        after = [new.reshape(old.shape) for old, new in zip(before, after, strict=True)]
        self._put(pair.head.weight, after[0])
        self._put(pair.tail.weight, after[1])
        if pair.head.bias is not None:  # of Gemm it may be one for all outputs
            self._put(pair.head.bias, self._value(pair.head.bias) / factors)
        return sum(float(np.abs(new - old).mean()) for old, new in zip(before, after, strict=True))

    def report(self) -> PairReport:
        total = self._total
        return PairReport(
            head=self._pair.head.node_name,
            tail=self._pair.tail.node_name,
            channels=len(total),
            scaled=int((total != 1).sum()),
            factors=(float(total.min()), float(total.max())),
        )

    def _factors(self, head: _Array, tail: _Array) -> _Array:
        """By how much each channel is divided in the head and multiplied in the tail: (channels,), powers of two."""
        config, of_head = self._config, self._outputs.rows(head)
        channels = len(of_head)
        if config.cle_scale_append_bias and self._pair.head.bias is not None:
            bias = self._value(self._pair.head.bias) * np.ones(channels, np.float32)
            of_head = np.concatenate([of_head, bias.reshape(-1, channels).T], axis=1)
        of_tail = self._inputs.rows(tail).reshape(channels, -1)
        r1, r2 = (np.abs(rows).max(axis=1).astype(np.float64) for rows in (of_head, of_tail))
        used = (r1 > 0) & (r2 > 0)
        if config.cle_scale_use_threshold:
            used &= r1 + r2 >= config.cle_weight_threshold
        r1[~used], r2[~used] = 1, 1
        # r1 / s = r2 s = sqrt(r1 r2) for s = sqrt(r1 / r2), here to the nearest power of two
        factors: _Array = np.exp2(np.rint(np.log2(r1 / r2) / 2)).astype(np.float32)
        return factors

    def _value(self, name: str) -> _Array:
        values: _Array = numpy_helper.to_array(self._tensors[name])
        return values

    def _put(self, name: str, values: _Array) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))


def _input_layout(layer: WeightLayer) -> RowLayout:
    """Of the weight, with a row for each input channel."""
    shape = layer.weight_shape
    if layer.op_type == "ConvTranspose":
        return RowLayout((shape[0], math.prod(shape[1:])), (0, 1), shape[0])
    if isinstance(layer.attributes, ConvAttributes):
        groups = layer.attributes.group
        parts = (groups, shape[0] // groups, shape[1], math.prod(shape[2:]))
        return RowLayout(parts, (0, 2, 1, 3), groups * shape[1])
    if layer.channel_axis == 0:
        return RowLayout(shape, (1, 0), shape[1])
    return RowLayout((math.prod(shape[:-2]), *shape[-2:]), (1, 0, 2), shape[-2])
