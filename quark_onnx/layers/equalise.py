"""Cross-layer equalisation: a channel's ranges in the weights of two layers meet, and the model computes the same.

Nagel et al. 2019, arXiv 1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quark.onnx.config.algorithm import CLEConfig
from quark.onnx.graph.editor import GraphEditor, constant_tensors
from quark.onnx.layers.layer_pairs import LayerPair, layer_pairs

__all__ = ["PairReport", "equalise"]

_MOST_STEPS = 100  # of cle_steps=-1
_Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """What was done to two layers that follow each other.

    Attributes:
        head, tail: the nodes; the head's outputs were divided, the tail's inputs multiplied.
        channels: outputs of the head.
        scaled: how many of them have a factor other than 1.
        factors: the smallest and the largest.
        clips: the Clip nodes between them that became Relu and Min with a bound for each channel.
        reason: why the pair was left alone; "" if it was not.
    """

    head: str
    tail: str
    channels: int = 0
    scaled: int = 0
    factors: tuple[float, float] = (1.0, 1.0)
    clips: tuple[str, ...] = ()
    reason: str = ""


def equalise(
    model: onnx.ModelProto, quantized: Collection[str], config: CLEConfig
) -> tuple[onnx.ModelProto, tuple[PairReport, ...]]:
    """A copy of a prepared float model with other weights and biases that computes the same up to rounding; and all
    pairs found, in graph order.

    Where Clip(x, 0, h) stands between two layers it becomes Min(Relu(x), h / s), with a bound for each channel.

    Args:
        quantized: the nodes that will be quantized; only pairs of these are equalised.
    """
    found = tuple(_wanted(pair, quantized, config) for pair in layer_pairs(model))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    tensors = constant_tensors(result.graph)
    used = [pair for pair in found if not pair.reason]
    names = {name for pair in used for name in (pair.head.weight, pair.head.bias, pair.tail.weight) if name}
    values = {name: numpy_helper.to_array(tensors[name]).astype(np.float64) for name in sorted(names)}
    pairs = [_Pair(pair, values, config) for pair in used]
    for _ in range(_MOST_STEPS if config.cle_steps < 0 else config.cle_steps):
        change = sum(pair.step() for pair in pairs)
        if config.cle_steps < 0 and change < config.cle_total_layer_diff_threshold:
            break
    for name, array in values.items():  # rounded once, whatever the number of steps
        tensors[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
    editor = GraphEditor(result.graph)
    for pair in pairs:
        pair.scale_clips(editor)
    editor.remove_unused_initializers()
    done = iter(pairs)
    return result, tuple(_left_alone(pair) if pair.reason else next(done).report() for pair in found)


def _wanted(pair: LayerPair, quantized: Collection[str], config: CLEConfig) -> LayerPair:
    """The pair, with a reason not to equalise it if the configuration has one."""
    if not pair.reason and pair.clips and not config.cle_over_clips:
        return replace(pair, reason=f"{_named(pair.clips)} in between, and cle_over_clips=False")
    for layer in (pair.head, pair.tail):
        if not pair.reason and layer.node_name not in quantized:
            return replace(pair, reason=f"{layer.node_name!r} is not quantized")
    return pair


def _named(clips: Iterable[str]) -> str:
    return ", ".join(f"Clip {name!r}" for name in clips)


def _left_alone(pair: LayerPair) -> PairReport:
    return PairReport(head=pair.head.node_name, tail=pair.tail.node_name, reason=pair.reason)


class _Pair:
    """Two layers.

    Args:
        values: the constants of all pairs, by name; those of this one are changed at each step.
    """

    def __init__(self, pair: LayerPair, values: dict[str, _Array], config: CLEConfig) -> None:
        self._pair, self._values, self._config = pair, values, config
        self._outputs, self._inputs = pair.head.layout, pair.tail.input_layout
        self._total: _Array = np.ones(self._outputs.outputs)

    def step(self) -> float:
        """Let the ranges meet.

        Returns:
            The mean change of the weights of both layers, added.
        """
        head, tail, bias = self._pair.head.weight, self._pair.tail.weight, self._pair.head.bias
        rows, columns = self._outputs.rows(self._values[head]), self._inputs.rows(self._values[tail])
        factors = self._factors(rows, columns)
        self._total *= factors
        after = {
            head: self._outputs.values(rows / factors[:, None]),
            tail: self._inputs.values(columns * np.repeat(factors, self._pair.repeat)[:, None]),
        }
        change = 0.0
        for name, values in after.items():
            before = self._values[name]
            self._values[name] = values.reshape(before.shape)
            change += float(np.abs(self._values[name] - before).mean())
        if bias is not None:
            self._values[bias] = self._values[bias] / factors  # that of Gemm may be one for all outputs
        return change

    def scale_clips(self, editor: GraphEditor) -> None:
        """Write Clip(x, 0, h) between the layers as Min(Relu(x), h / s)."""
        if (self._total == 1).all():
            return
        axes = self._pair.head.attributes.axes_behind_channels
        for name, highest in self._pair.clips.items():
            clip = next(node for node in editor.graph.node if node.name == name)
            output, below = clip.output[0], editor.fresh_name(f"{clip.output[0]}_relu")
            while len(clip.input) > 1:
                editor.drop_last_input(clip)
            clip.op_type, clip.output[0] = "Relu", below
            bound = helper.make_node("Min", [below], [output], _fresh_node_name(editor.graph, f"{name}_min"))
            editor.insert_after(clip, bound)
            node = editor.readers(below)[0]
            assert node is not None
            bounds = (highest / self._total).reshape(-1, *[1] * axes)
            editor.set_constant(node, 1, bounds, like=f"{output}_bound")
            known = next((value for value in editor.graph.value_info if value.name == output), None)
            if known is not None:
                editor.graph.value_info.add().CopyFrom(known)
                editor.graph.value_info[-1].name = below

    def report(self) -> PairReport:
        total = self._total
        return PairReport(
            head=self._pair.head.node_name,
            tail=self._pair.tail.node_name,
            channels=len(total),
            scaled=int((total != 1).sum()),
            factors=(float(total.min()), float(total.max())),
            clips=() if (total == 1).all() else tuple(self._pair.clips),
        )

    def _factors(self, rows: _Array, columns: _Array) -> _Array:
        """What each channel is divided by in the head and multiplied by in the tail: (channels,).

        Args:
            rows: (channels, weights of each) of the head.
            columns: of the tail, a row for each of its input channels.
        """
        config, channels = self._config, len(rows)
        if config.cle_scale_append_bias and self._pair.head.bias is not None:
            bias = self._values[self._pair.head.bias] * np.ones(channels)
            rows = np.concatenate([rows, bias.reshape(-1, channels).T], axis=1)
        r1, r2 = (np.abs(weights).max(axis=1) for weights in (rows, columns.reshape(channels, -1)))
        used = (r1 > 0) & (r2 > 0)
        if config.cle_scale_use_threshold:
            used &= r1 + r2 >= config.cle_weight_threshold
        factors: _Array = np.ones(channels)
        factors[used] = np.sqrt(r1[used] / r2[used])  # r1 / s = r2 s = sqrt(r1 r2)
        return factors


def _fresh_node_name(graph: onnx.GraphProto, like: str) -> str:
    taken, name = {node.name for node in graph.node}, like
    while name in taken:
        name += "_"
    return name
