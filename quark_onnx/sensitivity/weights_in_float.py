"""Which weights of layers that lie wholly in islands stay in float too.

A layer whose inputs and output are floats computes in float whatever its weight is: integers make the file smaller, and
nothing faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import numpy_helper

from quark.onnx.calibration.calibrate import Calibration
from quark.onnx.graph.editor import GraphEditor
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine
from quark.onnx.layers.weight_layers import weight_layers
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.islands import HARM
from quark.onnx.sensitivity.weight_switch import WeightSwitch

__all__ = ["weights_in_float", "without_weights"]


def weights_in_float(
    model: onnx.ModelProto, quantized: onnx.ModelProto, on: tuple[Sequence[Batch], Engine], room: float, runs: int
) -> dict[str, float]:
    """The weights that alone destroy the model, and what each does to the output that suffers most.

    Args:
        model: the float model.
        quantized: the Q/DQ model that was made from it, with islands.
        on: a few samples, and what runs the models.
        room: so many values may be floats in all, those of a weight counted as an activation's of one sample. Those
            with the most error for what they hold come first.
        runs: of one item with one weight quantized, in all; each has one at least.

    Returns:
        By initializer: mean squared error over variance, everything else in float.
    """
    switches = _switches(model, quantized, on)
    if not switches:
        return {}
    damage = Damage(model, model, *on, weights=switches)
    items = max(1, runs // len(switches))
    errors = {switch: damage.error([switch], items) for switch in switches}
    found = {}
    for switch, error in sorted(errors.items(), key=lambda item: -item[1] / item[0].elements):
        if error >= HARM and switch.elements <= room:
            found[switch.name] = error
            room -= switch.elements
    return found


def without_weights(calibration: Calibration, model: onnx.ModelProto, why: dict[str, str]) -> Calibration:
    """A calibration by which these weights stay in float, with the biases that they have in the float model.

    Args:
        model: the float model.
        why: the reasons, by initializer.
    """
    biases = {layer.bias for layer in weight_layers(model) if layer.weight in why}
    return replace(
        calibration,
        weights={name: params for name, params in calibration.weights.items() if name not in why},
        bias_shifts={name: shift for name, shift in calibration.bias_shifts.items() if name not in biases},
        without_range=calibration.without_range | why,
    )


def _switches(
    model: onnx.ModelProto, quantized: onnx.ModelProto, on: tuple[Sequence[Batch], Engine]
) -> tuple[WeightSwitch, ...]:
    """The quantized weights that only layers in islands read."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    editor, inside = GraphEditor(model.graph), _in_islands(quantized)
    written = dict[str, str]()  # the name in the quantized model, by weight
    for layer in weight_layers(model):
        readers = editor.readers(layer.weight)
        if all(node is not None and node.name in inside for node in readers):
            own = next(node for node in readers if node is not None and node.name == layer.node_name)
            written[layer.weight] = inside[own.name].input[list(own.input).index(layer.weight)]
    floats = {tensor.name for tensor in quantized.graph.initializer}
    written = {weight: name for weight, name in written.items() if name not in floats}
    items, engine = on
    given = ExposedTensors(quantized, list(written.values()), engine)(items[0]) if written else {}
    values = {
        weight: (numpy_helper.to_array(constants[weight]), np.asarray(given[name], np.float32))
        for weight, name in written.items()
    }
    return tuple(
        WeightSwitch(name=weight, tensors=(weight,), inputs=(), real=(real,), quantized=(other,), fine=None, spread=1.0)
        for weight, (real, other) in values.items()
        if real.shape == other.shape
    )


def _in_islands(quantized: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes that neither read nor make a quantized activation, by name."""
    nodes = quantized.graph.node
    constants = {tensor.name for tensor in quantized.graph.initializer}
    ends = set[str]()  # what comes out of a DequantizeLinear, and what goes into a QuantizeLinear
    for node in nodes:
        if node.op_type == "QuantizeLinear":
            ends.add(node.input[0])
        elif node.op_type == "DequantizeLinear" and node.input[0] not in constants:
            ends.update(node.output)
    return {node.name: node for node in nodes if node.name and ends.isdisjoint([*node.input, *node.output])}
