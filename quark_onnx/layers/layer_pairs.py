"""Find pairs of layers between which a channel can be scaled: the first divides it, the second multiplies it again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import reads
from quark.onnx.layers.weight_layers import WeightLayer, weight_layers

__all__ = ["LayerPair", "layer_pairs"]

_HOMOGENEOUS = frozenset({"LeakyRelu", "PRelu", "Relu"})  # f(s x) = s f(x) for every s > 0
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


@dataclass(frozen=True)
class LayerPair:
    """Two layers, the second of which reads what the first makes.

    Attributes:
        head, tail: the layers.
        repeat: input channels of the tail for each output channel of the head, side by side: more than 1 behind a
            Flatten.
        clips: the Clip nodes in between, whose interval starts at 0, with its end.
        reason: why no channel between them can be scaled; "" if all can.
    """

    head: WeightLayer
    tail: WeightLayer
    repeat: int = 1
    clips: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def layer_pairs(model: onnx.ModelProto) -> tuple[LayerPair, ...]:
    """The pairs of linear layers of a prepared float model, in graph order of their heads.

    A pair is a layer and the first layer behind it, with only nodes of one dynamic input in between. Its channels can
    be scaled where these are Clip(x, 0, h) of the head's own output, Relu, LeakyRelu and PRelu, pooling, Pad that
    leaves the channels alone and pads with 0, and the flattening of all axes but the first; where nobody else reads any
    of the tensors; and where nobody else reads the weights and the head's bias.
    """
    graph = Dataflow(model)
    layers = {layer.node_name: layer for layer in weight_layers(model) if not layer.attributes.normalizes}
    search = _Search(graph, layers, _shapes(model))
    return tuple(pair for head in layers.values() if (pair := search.from_(head)) is not None)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """0 for an axis of unknown length."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    tensors = {value.name: value.type.tensor_type for value in values}
    return {name: tuple(d.dim_value for d in t.shape.dim) for name, t in tensors.items() if t.HasField("shape")}


@dataclass(frozen=True)
class _Search:
    """The way from a head to its tail."""

    graph: Dataflow
    layers: dict[str, WeightLayer]
    shapes: dict[str, tuple[int, ...]]

    def from_(self, head: WeightLayer) -> LayerPair | None:
        tensor, flat, reasons = head.output, head.attributes.channels_last, list(self._of_head(head))
        clips: dict[str, float] = {}
        while readers := self.graph.readers(tensor):
            if self.graph.only_reader(tensor) is None:
                what = "is an output of the model" if tensor in self.graph.outputs else f"has {len(readers)} readers"
                reasons.append(f"{tensor!r} {what}")
            node = next((reader for reader in readers if reader.name in self.layers), readers[0])
            tail = self.layers.get(node.name)
            if list(reads(node)).count(tensor) != 1 or node.input[0] != tensor or len(node.output) != 1:
                return None
            if tail is not None:
                pair = self._pair(head, tail, flat, [*reasons, *self._of_tail(tail)])
                return replace(pair, clips=clips)
            if any(name != tensor and not self.graph.is_constant(name) for name in reads(node)):
                return None
            highest = self._end_of_clip(node) if tensor == head.output else None
            if highest is not None:
                clips[node.name] = highest
            else:
                reasons += self._of_node(node, flat)
            flat = flat or self._is_flattening(node)
            tensor = node.output[0]
        return None

    def _pair(self, head: WeightLayer, tail: WeightLayer, flat: bool, reasons: list[str]) -> LayerPair:
        made, read = head.layout.outputs, tail.input_layout.outputs
        if read % made or (read != made and not flat):
            reasons.append(f"{made} channels become {read}")
        elif flat is not tail.attributes.channels_last:
            reasons.append("its channels are on another axis")
        return LayerPair(head, tail, max(read // made, 1), reason=reasons[0] if reasons else "")

    def _of_head(self, head: WeightLayer) -> Iterator[str]:
        if head.has_dynamic_bias:
            yield f"the bias of {head.node_name!r} is computed by the model"
        if head.bias and [*self.graph.initializers[head.bias].dims][-1:] not in ([], [1], [head.layout.outputs]):
            yield f"the bias of {head.node_name!r} does not fit its outputs"
        if head.attributes.comes_first:
            yield f"{head.node_name!r} has its weight as the first input"
        for name in filter(None, (head.weight, head.bias)):
            yield from self._of_constant(name)

    def _of_tail(self, tail: WeightLayer) -> Iterator[str]:
        if tail.attributes.transposes_input:
            yield f"{tail.node_name!r} transposes its input"
        yield from self._of_constant(tail.weight)

    def _of_constant(self, name: str) -> Iterator[str]:
        if self.graph.only_reader(name) is None:
            yield f"{name!r} is read by other nodes too"

    def _of_node(self, node: onnx.NodeProto, flat: bool) -> Iterator[str]:
        """Why a node between the layers does not let scaled channels through."""
        scales = not flat and (
            node.op_type in _POOLS
            or (node.op_type == "Pad" and self._pads_with_zeros(node))
            or self._is_flattening(node)
        )
        if node.domain not in ("", "ai.onnx") or not (scales or node.op_type in _HOMOGENEOUS):
            yield f"{node.op_type} {node.name!r} in between: a scaled channel does not come out scaled"

    def _end_of_clip(self, node: onnx.NodeProto) -> float | None:
        """h of Clip(x, 0, h), h > 0; None of other nodes."""
        if node.op_type != "Clip" or len(node.input) != 3:
            return None
        bounds = [self._constant(name) for name in node.input[1:]]
        if any(bound is None or bound.dtype != np.float32 for bound in bounds):
            return None
        low, high = (float(bound.item()) for bound in bounds if bound is not None)
        return high if low == 0 and 0 < high < math.inf else None

    def _pads_with_zeros(self, node: onnx.NodeProto) -> bool:
        """Whether a Pad leaves the second axis alone and adds zeros, or what is there, to others."""
        given = [self._constant(name) for name in node.input[1:]]
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        if not given or given[0] is None or len(given) > 2:  # axes, of opset 18, are not read
            return False
        filler = given[1] if len(given) == 2 else np.zeros(())
        channels = given[0].reshape(2, -1)[:, 1]
        return not channels.any() and (mode != b"constant" or (filler is not None and not filler.any()))

    def _is_flattening(self, node: onnx.NodeProto) -> bool:
        """Whether a node joins all axes but the first, in order."""
        before, after = (self.shapes.get(name, ()) for name in (node.input[0], node.output[0]))
        rest = math.prod(before[1:])
        kind = node.op_type in ("Flatten", "Reshape", "Squeeze")
        return kind and len(before) > 2 and len(after) == 2 and rest > 0 and after[1] == rest

    def _constant(self, name: str) -> NDArray[np.generic] | None:
        tensor = self.graph.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)
