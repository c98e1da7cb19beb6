"""What rounding alone does to a model's outputs: the float model with noise of half a step on every tensor.

An oracle for quantized models whose operators amplify noise, each in its own way: nothing is quantized here, so that
nothing of what is tested has a part in it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from small_models import opened

__all__ = ["Arrays", "outputs_of", "rms", "rounding_noise"]

Arrays = dict[str, np.ndarray]
_NOT_WEIGHTS = {"Resize": (1, 2), "Upsample": (1,), "Clip": (1, 2), "Pad": (2,)}  # inputs that are no data


def outputs_of(model: onnx.ModelProto, items: list[Arrays], *, optimise: bool = False) -> list[list[np.ndarray]]:
    """The outputs by item, by output."""
    session = opened(model.SerializeToString(), optimise=optimise)
    return [session.run(None, item) for item in items]


def rms(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(np.mean([np.mean(array.astype(np.float64) ** 2) if array.size else 0.0 for array in arrays])))


def rounding_noise(model: onnx.ModelProto, items: list[Arrays], *, bits: tuple[int, int], seed: int) -> list[float]:
    """RMS of the change of each float output; 0 of others.

    Args:
        bits: of activations and of weights.
    """
    random = np.random.default_rng(seed)
    noisy = onnx.ModelProto()
    noisy.CopyFrom(model)
    tensors = _float_tensors(model, items)
    _disturb_constants(noisy.graph, bits[1], random)
    for node in list(noisy.graph.node):
        for i, name in enumerate(node.output):
            if name in tensors:
                node.output[i] = name + " exact"
    added = []
    for name, (shape, span) in tensors.items():
        noise = (random.random(shape) - 0.5) * span / (2.0 ** bits[0] - 1)
        noisy.graph.initializer.append(numpy_helper.from_array(noise.astype(np.float32), name + " noise"))
        added.append(onnx.helper.make_node("Add", [name + " exact", name + " noise"], [name]))
    for value in noisy.graph.input:
        if value.name in tensors:
            value.name += " exact"
    noisy.graph.node.extend(added)
    _sort(noisy.graph)
    changed = [{name + " exact" if name in tensors else name: array for name, array in item.items()} for item in items]
    want, have = outputs_of(model, items), outputs_of(noisy, changed)
    return [
        rms([h - w for w, h in zip(of_want, of_have, strict=True)]) if of_want[0].dtype == np.float32 else 0.0
        for of_want, of_have in zip(zip(*want, strict=True), zip(*have, strict=True), strict=True)
    ]


def _float_tensors(model: onnx.ModelProto, items: list[Arrays]) -> dict[str, tuple[tuple[int, ...], float]]:
    """The shape and the span, 0 included, of each float tensor of the main graph."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    made = [name for node in model.graph.node for name in node.output if name and node.op_type != "Constant"]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    values = [
        {**item, **dict(zip(made, outputs, strict=True))}
        for item, outputs in zip(items, outputs_of(exposed, items), strict=True)
    ]
    shares = {node.output[0] for node in model.graph.node if node.op_type == "Softmax"}
    found = {}
    for name, first in values[0].items():
        if first.dtype == np.float32 and first.size:
            every = [one[name] for one in values]
            low, high = min(0.0, *(float(a.min()) for a in every)), max(0.0, *(float(a.max()) for a in every))
            found[name] = first.shape, 1.0 if name in shares else high - low  # onnxruntime's rule of Softmax
    return found


def _disturb_constants(graph: onnx.GraphProto, bits: int, random: np.random.Generator) -> None:
    data = {
        name for node in graph.node for i, name in enumerate(node.input) if i not in _NOT_WEIGHTS.get(node.op_type, ())
    }
    data -= {name for node in graph.node for i in _NOT_WEIGHTS.get(node.op_type, ()) for name in node.input[i : i + 1]}
    tensors = [t for t in graph.initializer if t.name in data]
    tensors += [node.attribute[0].t for node in graph.node if node.op_type == "Constant" and node.output[0] in data]
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            value = numpy_helper.to_array(tensor)
            step = np.abs(value).max(initial=0.0) / (2.0 ** (bits - 1) - 1)
            changed = value + (random.random(value.shape) - 0.5) * step
            tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), tensor.name))


def _sort(graph: onnx.GraphProto) -> None:
    """Each Add behind the node whose output it changes."""
    ready = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    left, order = list(graph.node), []
    while left:
        node = next(n for n in left if ready.issuperset(_reads(n)))
        left.remove(node)
        ready.update(node.output)
        order.append(node)
    del graph.node[:]
    graph.node.extend(order)


def _reads(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = {name for child in attribute.g.node for name in child.input}
            inner -= {name for child in attribute.g.node for name in child.output}
            names |= inner - {tensor.name for tensor in attribute.g.initializer}
    return names
