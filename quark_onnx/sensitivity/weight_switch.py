"""The weights of layers as inputs of the float model, so that one session runs any mix of float and quantized ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.graph.editor import constant_tensors
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Engine
from quark.onnx.plan.types import LayerPlan, QuantizedWeight

__all__ = ["WeightSwitch", "weight_switches", "weights_as_inputs"]


class _Pair(NamedTuple):
    """One input of a layer's node: its position, and its name in the float and in the quantized model."""

    at: int
    real: str
    quantized: str


@dataclass(frozen=True, eq=False)
class WeightSwitch:
    """The weight and bias of one layer.

    Attributes:
        name: of the layer's node in the quantized model.
        tensors: names of the initializers in the float model.
        inputs: which inputs of the node they are, in both models.
        real: their values.
        quantized: what the quantized model has for them, dequantized.
        fine: what it would have with one scale for each output channel and the bias in float; None where it has one.
        spread: the largest value of the channel with the largest ones, over that of the median channel.
    """

    name: str
    tensors: tuple[str, ...]
    inputs: tuple[int, ...]
    real: tuple[NDArray[np.float32], ...]
    quantized: tuple[NDArray[np.float32], ...]
    fine: tuple[NDArray[np.float32], ...] | None
    spread: float

    @property
    def elements(self) -> int:
        """The number of its values."""
        return sum(array.size for array in self.real)

    def values(self, on: frozenset[str], fine: frozenset[str]) -> Batch:
        """The tensors, where these layers are quantized."""
        found = self.real if self.name not in on else self.quantized
        if self.name in on & fine and self.fine is not None:
            found = self.fine
        return dict(zip(self.tensors, found, strict=True))


def weight_switches(
    model: onnx.ModelProto, quantized: onnx.ModelProto, layers: Sequence[LayerPlan], item: Batch, engine: Engine
) -> tuple[WeightSwitch, ...]:
    """The layers of a plan whose weights are constants of both models. A weight that layers share is the first one's.

    Args:
        model: the float model; not changed.
        quantized: the Q/DQ model; not changed.
        layers: of the plan of both.
        item: the models run on it once.
        engine: runs the quantized model.

    Raises:
        ModelError: onnxruntime cannot load the quantized model.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = {node.name: node for node in quantized.graph.node}
    pairs: dict[str, list[_Pair]] = {}
    taken = set[str]()
    for layer in layers:
        theirs = nodes[layer.node].input
        own = makers[layer.target].input if layer.target in makers else []
        both = [_Pair(at, a, b) for at, (a, b) in enumerate(zip(own, theirs, strict=False))]
        found = [one for one in both if one.real in constants and one.real not in taken]
        found = [one for one in found if constants[one.real].data_type == onnx.TensorProto.FLOAT]
        if found:
            taken.update(one.real for one in found)
            pairs[layer.node] = found
    names = list(dict.fromkeys(one.quantized for found in pairs.values() for one in found))
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in constant_tensors(quantized.graph).values()}
    asked = [name for name in names if name not in given]
    given |= dict(ExposedTensors(quantized, asked, engine)(item)) if asked else {}
    switches = (_switch(layer, pairs[layer.node], constants, given) for layer in layers if layer.node in pairs)
    return tuple(switch for switch in switches if switch is not None)


def weights_as_inputs(model: onnx.ModelProto, switches: Iterable[WeightSwitch]) -> onnx.ModelProto:
    """A copy of a model that takes these tensors as inputs; itself without any."""
    names = {name for switch in switches for name in switch.tensors}
    if not names:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.name in names]:
        graph.initializer.remove(tensor)
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return result


def _switch(
    layer: LayerPlan,
    pairs: Sequence[_Pair],
    constants: dict[str, onnx.TensorProto],
    given: dict[str, NDArray[np.generic]],
) -> WeightSwitch | None:
    """None where the two models do not write the layer in the same way."""
    real = tuple(onnx.numpy_helper.to_array(constants[one.real]) for one in pairs)
    quantized = tuple(np.asarray(given[one.quantized], np.float32) for one in pairs)
    if any(a.shape != b.shape for a, b in zip(real, quantized, strict=True)):
        return None
    weight = layer.weight
    largest = np.abs(weight.rows).max(axis=1, initial=0)
    middle = float(np.median(largest))
    fine = None
    if len(weight.rows) > 1 and (weight.scale == weight.scale.flat[0]).all():
        values = weight.layout.values(_per_channel(weight))
        at = [i for i, array in enumerate(real) if array.ndim > 1 and array.size == values.size]
        if len(at) == 1:
            fine = tuple(values.reshape(array.shape) if i == at[0] else array for i, array in enumerate(real))
    return WeightSwitch(
        layer.node,
        tuple(one.real for one in pairs),
        tuple(one.at for one in pairs),
        real,
        quantized,
        fine,
        float(largest.max()) / middle if middle > 0 else 1.0,
    )


def _per_channel(weight: QuantizedWeight) -> NDArray[np.float32]:
    """The rows rounded to the nearest step of a symmetric scale of their own."""
    levels = (weight.qmax - weight.qmin) // 2
    scale = np.maximum(np.abs(weight.rows).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / levels
    rounded: NDArray[np.float32] = (np.rint(weight.rows / scale) * scale).astype(np.float32)
    return rounded
