"""What the loss of a layer looks through, found in the graph; csrc/ops/output_stage.c calculates it.

It is the activation behind the layer, and the quantization of its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.core_view.quantizers import INTEGERS, constant_values, dequantize_parameters
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import attributes
from quark.onnx.layers.weight_layers import WeightLayer
from quark.onnx.patterns.matcher import Match, Matcher

__all__ = ["Activation", "OutputStage", "output_stage"]


@dataclass(frozen=True, eq=False)
class Activation:
    """An activation as the core knows it (csrc/include/qk.h).

    Attributes:
        kind: "none", "clip", "leaky_relu", "sigmoid", "tanh", "gelu", "gelu_tanh", "hard_sigmoid", "hard_swish",
            "silu" or "softmax".
        a, b: clip: the bounds; leaky_relu: a is the slope; hard_sigmoid: ONNX's alpha and beta.
        slopes: (outputs,) float32 of PRelu, in place of a.
        axis: of softmax.
    """

    kind: str = "none"
    a: float = 0.0
    b: float = 0.0
    slopes: NDArray[np.float32] | None = None
    axis: int = 0

    def is_like(self, other: Activation) -> bool:
        """Whether they differ at most in how their numbers are rounded."""
        if (self.kind, self.axis) != (other.kind, other.axis) or not (
            math.isclose(self.a, other.a, rel_tol=1e-5) and math.isclose(self.b, other.b, rel_tol=1e-5)
        ):
            return False
        if self.slopes is None or other.slopes is None:
            return self.slopes is other.slopes
        return np.allclose(self.slopes, other.slopes, rtol=0, atol=0.01 * float(np.abs(other.slopes).max()))


@dataclass(frozen=True, eq=False)
class OutputStage:
    """The loss compares quantize(activation(output)) with activation(float output).

    Attributes:
        folded: the quantized model has no such activation, as the ends of the grid do the same: quantize(output).
        grid: (scale, zero point, qmin, qmax) of the output's quantization; None: it is not looked at.
    """

    activation: Activation
    folded: bool
    grid: tuple[float, int, int, int] | None


def output_stage(
    layer: WeightLayer, quantized: Matcher, counterpart: WeightLayer, in_float: Matcher, *, through_qdq: bool
) -> OutputStage | None:
    """The stage of a quantized layer, None where the loss is taken at its output.

    An activation counts if it alone reads the output, and stands in both graphs, as a node or as one of the patterns of
    patterns/pattern_table.py; with `through_qdq` also one that the quantized graph leaves to the output's quantization.

    Args:
        quantized, in_float: of the two graphs; best the same for all layers, as they remember what they have read.
    """
    find, graph = _Finder(layer), quantized.graph
    wanted, _ = find.activation(in_float, counterpart.output)
    kept, output = find.activation(quantized, layer.output)
    if kept is not None and (wanted is None or not kept.is_like(wanted)):
        return None
    grid = _grid(graph, output) if through_qdq else None
    folded = (
        kept is None and wanted is not None and grid is not None and not _is_behind_qdq(quantized, output, wanted, find)
    )
    if kept is None and grid is None:
        return None
    return OutputStage((wanted if folded else kept) or Activation(), folded, grid)


def _grid(graph: Dataflow, tensor: str) -> tuple[float, int, int, int] | None:
    node = graph.only_reader(tensor)
    if node is None or node.op_type != "QuantizeLinear":
        return None
    scale, zero_point = dequantize_parameters(node, graph)
    kind = INTEGERS.get(zero_point.dtype.name)
    if scale is None or scale.size != 1 or kind is None:
        return None
    return float(scale.reshape(())), int(zero_point.reshape(())), kind.qmin, kind.qmax


def _is_behind_qdq(quantized: Matcher, tensor: str, activation: Activation, find: _Finder) -> bool:
    """Whether the activation follows the quantization of the output, and so does not belong to it."""
    for quantize in quantized.graph.readers(tensor):
        for dequantize in quantized.graph.readers(quantize.output[0]):
            found, _ = find.activation(quantized, dequantize.output[0])
            if found is not None and found.is_like(activation):
                return True
    return False


class _Finder:
    """Finds the activations that suit a layer."""

    def __init__(self, layer: WeightLayer) -> None:
        own = layer.attributes
        self._axes_stay = not (own.normalizes or own.comes_first)  # the core's are the model's
        self._outputs = layer.layout.outputs
        self._behind_channel = own.axes_behind_channels

    def activation(self, matcher: Matcher, tensor: str) -> tuple[Activation | None, str]:
        """The one that alone reads a tensor, and its output; None and the tensor where there is no such."""
        graph = matcher.graph
        node = graph.only_reader(tensor)
        found = self._of_node(node, graph) if node is not None and node.domain in ("", "ai.onnx") else None
        if node is not None and found is not None:
            return found, node.output[0]
        for match in matcher.behind(tensor):
            found = self._of_pattern(match)
            if found is not None:
                return found, match.output
        return None, tensor

    def _of_pattern(self, match: Match) -> Activation | None:
        match match.pattern.stands_for, match.values:
            case "SiLU", _:
                return Activation("silu")
            case "HardSwish", _:
                return Activation("hard_swish")
            case "HardSigmoid", {"alpha": float() as alpha, "beta": float() as beta}:
                return Activation("hard_sigmoid", alpha, beta)
            case "PRelu", {"slope": slope}:
                return self._sloped(np.asarray(slope, np.float32))
            case "Gelu", values:
                return Activation("gelu_tanh" if "approximate" in values else "gelu")
        return None

    def _of_node(self, node: onnx.NodeProto, graph: Dataflow) -> Activation | None:
        given = attributes(node)
        match node.op_type:
            case "Relu":
                return Activation("clip", 0.0, math.inf)
            case "Clip":
                return self._clip(node, given, graph)
            case "LeakyRelu":
                return Activation("leaky_relu", given.get("alpha", 0.01))
            case "PRelu":
                slope = constant_values(graph, node.input[1])
                return None if slope is None else self._sloped(slope)
            case "Sigmoid":
                return Activation("sigmoid")
            case "Tanh":
                return Activation("tanh")
            case "Gelu":
                return Activation("gelu_tanh" if given.get("approximate") == b"tanh" else "gelu")
            case "HardSigmoid":
                return Activation("hard_sigmoid", given.get("alpha", 0.2), given.get("beta", 0.5))
            case "HardSwish":
                return Activation("hard_swish")
            case "Swish" if given.get("alpha", 1.0) == 1.0:
                return Activation("silu")
            case "Softmax":
                return self._softmax(given, graph)
        return None

    def _clip(self, node: onnx.NodeProto, given: dict[str, Any], graph: Dataflow) -> Activation | None:
        bounds = [given.get("min", -math.inf), given.get("max", math.inf)]
        for i, name in enumerate(node.input[1:]):
            if name:
                bound = constant_values(graph, name)
                if bound is None or bound.size != 1:
                    return None
                bounds[i] = float(bound.reshape(()))
        return Activation("clip", *bounds)

    def _sloped(self, slope: NDArray[np.float32]) -> Activation | None:
        if slope.size != 1:
            if not self._axes_stay:
                return None
            channels_first = slope.shape[slope.ndim - 1 - self._behind_channel :] if slope.ndim else ()
            if slope.size != self._outputs or slope.ndim <= self._behind_channel or channels_first[0] != self._outputs:
                return None  # other slopes at other positions
        return Activation(
            "leaky_relu", slopes=np.ascontiguousarray(np.broadcast_to(slope.reshape(-1), self._outputs), np.float32)
        )

    def _softmax(self, given: dict[str, Any], graph: Dataflow) -> Activation | None:
        version = next((o.version for o in graph.model.opset_import if o.domain in ("", "ai.onnx")), 1)
        axis = given.get("axis", -1)
        if version < 13 or axis == 0 or not self._axes_stay:  # before 13: over all axes from `axis` on; 0: over samples
            return None
        return Activation("softmax", axis=axis)
