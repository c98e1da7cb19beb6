"""Tensors of which one step of their range swallows nearly everything: attention scores with -1e4 where masked.

Such a tensor is found by what happens to what is made of it, not by the operators around it: a peaked Softmax, too, has
nearly all of its values within one step, and loses nothing by it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.graph.editor import GraphEditor, subgraphs
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.layers.weight_layers import weight_layers

__all__ = ["Sampled", "swallowed"]

_LOG = logging.getLogger(__name__)
_LOOKED_AT = 4096  # values of a tensor
_FEW = 3  # levels that hold all of them but for one in a hundred
_DEPTH = 3  # nodes behind a tensor whose outputs are looked at
_DAMAGE = 0.1  # the noise in one of these, relative to its variance


@dataclass(frozen=True)
class _Rounding:
    """v becomes step * clip(round(v / step), lowest, highest)."""

    step: float
    lowest: float
    highest: float

    @property
    def middle(self) -> float:
        return (self.lowest + self.highest) / 2

    @property
    def reach(self) -> float:
        """How far the range reaches from its middle, in steps."""
        return (self.highest - self.lowest) / 2 + 0.5

    def levels(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        steps: NDArray[np.float64] = np.clip(np.rint(values.astype(np.float64) / self.step), self.lowest, self.highest)
        return steps


class Sampled:
    """Some values of each tensor, of one item.

    Args:
        values: the tensors; a view is copied.
    """

    def __init__(self, values: Mapping[str, NDArray[np.generic]], tensors: list[str]) -> None:
        self.values = {name: some_of(values[name]).copy() for name in tensors}


def some_of(values: NDArray[np.generic]) -> NDArray[np.generic]:
    flat = values.reshape(-1)
    return flat[:: max(1, -(-flat.size // _LOOKED_AT))]


def swallowed(
    model: onnx.ModelProto,
    item: Batch,
    sampled: Sampled,
    ranges: Mapping[str, tuple[float, float]],
    range_of: Callable[[str], ActivationRange],
    engine: Engine,
) -> dict[str, str]:
    """The tensors that must not be rounded to their range, and why.

    Args:
        model: a prepared float model.
        item: the data that they were sampled of.
        ranges: of the tensors; constants have that of their values.
        range_of: says which quantizer a tensor has.
    """
    values = {name: sampled.values[name] for name in ranges if name in sampled.values} | _constants(model)
    suspects = {}
    for name, some in values.items():
        rounding = _rounding(ranges.get(name) or (float(some.min()), float(some.max())), range_of(name))
        if rounding is not None and _is_coarse(some.astype(np.float32), rounding):
            suspects[name] = rounding
    if not suspects:
        return {}
    return {
        name: f"one step of its range is {suspects[name].step:.3g}, which is more than its usual values differ by: "
        f"what follows from it would be lost, {damage:.0%} of it noise"
        for name, damage in _damages(model, item, suspects, engine).items()
        if not damage <= _DAMAGE
    }


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    """The constants that are quantized as activations are."""
    own = {name for layer in weight_layers(model) for name in (layer.weight, layer.bias)}
    tensors = (t for t in model.graph.initializer if t.name not in own and t.data_type == t.FLOAT)
    arrays = ((tensor.name, numpy_helper.to_array(tensor)) for tensor in tensors)
    return {name: array.reshape(-1) for name, array in arrays if array.size > 1 and np.isfinite(array).all()}


def _rounding(limits: tuple[float, float], chosen: ActivationRange) -> _Rounding | None:
    low, high = min(limits[0], 0.0), max(limits[1], 0.0)
    if chosen.symmetric:
        high = max(high, -low)
        low = -high
    steps = chosen.qmax - chosen.qmin
    if not (0 < high - low < np.inf):
        return None
    step = (high - low) / steps
    lowest = float(np.rint(low / step))
    return _Rounding(step, lowest, lowest + steps)


def _is_coarse(values: NDArray[np.float32], rounding: _Rounding) -> bool:
    """Whether few levels hold nearly all values, which are many more; what a range leaves out does not count."""
    values = values[np.abs(values / rounding.step - rounding.middle) <= rounding.reach]
    _, counts = np.unique(rounding.levels(values), return_counts=True)
    kept = int((np.cumsum(np.sort(counts)[::-1]) < 0.99 * values.size).sum()) + 1
    return kept <= _FEW and np.unique(values).size > 4 * len(counts)


def _damages(
    model: onnx.ModelProto, item: Batch, suspects: Mapping[str, _Rounding], engine: Engine
) -> dict[str, float]:
    """The largest noise, relative to the variance, in a tensor behind each suspect when it alone is rounded."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    flow, editor = Dataflow(model), GraphEditor(changed.graph)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
    pairs: dict[str, list[tuple[str, str]]] = {}
    for name, rounding in suspects.items():
        renamed = _rounded(editor, name, rounding)
        for node in _behind(flow, name):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = editor.fresh_name(f"{node.name}_rounded")
            copy.input[:] = [renamed.get(tensor, tensor) for tensor in node.input]
            renamed |= {tensor: editor.fresh_name(f"{tensor}_rounded") for tensor in node.output if tensor}
            copy.output[:] = [renamed.get(tensor, "") for tensor in node.output]
            changed.graph.node.append(copy)
        pairs[name] = [(old, new) for old, new in renamed.items() if types.get(old) == onnx.TensorProto.FLOAT]
    wanted = sorted({tensor for found in pairs.values() for pair in found for tensor in pair if tensor not in item})
    initializers = {tensor.name for tensor in model.graph.initializer}
    wanted = [tensor for tensor in wanted if tensor not in initializers]
    if not wanted:
        return {}
    del changed.graph.output[:]
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    try:
        values = dict(zip(wanted, session(changed, engine).run(wanted, item), strict=True))
    except Exception as error:  # shapes may depend on values, and no longer fit where only some are rounded
        _LOG.info("what rounding damages cannot be seen: %s", error)
        return {}
    return {
        name: max((_noise(values[old], values[new]) for old, new in found if old in values and old != name), default=0)
        for name, found in pairs.items()
    }


def _rounded(editor: GraphEditor, name: str, rounding: _Rounding) -> dict[str, str]:
    """Appends the nodes that round a tensor; by its name that of the result."""
    made = [editor.fresh_name(f"{name}_{what}") for what in ("steps", "whole", "kept", "rounded")]
    constants = {}
    for what, value in (("step", rounding.step), ("lowest", rounding.lowest), ("highest", rounding.highest)):
        constants[what] = editor.fresh_name(f"{name}_{what}")
        editor.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), constants[what]))
    editor.graph.node.extend(
        [
            helper.make_node("Div", [name, constants["step"]], [made[0]]),
            helper.make_node("Round", [made[0]], [made[1]]),
            helper.make_node("Clip", [made[1], constants["lowest"], constants["highest"]], [made[2]]),
            helper.make_node("Mul", [made[2], constants["step"]], [made[3]]),
        ]
    )
    return {name: made[3]}


def _behind(flow: Dataflow, tensor: str) -> list[onnx.NodeProto]:
    """The nodes that a tensor reaches within some steps, in graph order."""
    found, edge = dict[int, onnx.NodeProto](), {tensor}
    for _ in range(_DEPTH):
        nodes = [
            node for name in edge for node in flow.readers(name) if not is_random(node) and not any(subgraphs(node))
        ]
        found.update({id(node): node for node in nodes})
        edge = {name for node in nodes for name in node.output}
    return [node for node in flow.model.graph.node if id(node) in found]


def _noise(wanted: NDArray[np.generic], given: NDArray[np.generic]) -> float:
    """Relative to the variance; NaN where there is no number for it, and 0 where the shapes depend on the values."""
    if given.shape != wanted.shape:
        return 0.0
    with np.errstate(all="ignore"):
        error = np.mean(np.square(given.astype(np.float64) - wanted.astype(np.float64))) if wanted.size else 0.0
        power = np.var(wanted.astype(np.float64)) if wanted.size else 0.0
    return float(error / power) if power > 0 else 0.0
