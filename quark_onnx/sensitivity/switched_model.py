"""A float model with a switch at each activation quantizer, so that one session measures any set of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quark.onnx.graph.editor import GraphEditor, rename_tensors

__all__ = ["Switch", "SwitchedModel", "switched_model"]


@dataclass(frozen=True)
class Switch:
    """One scale and zero_point, and all that goes through them.

    Attributes:
        name: of the graph input, a bool scalar, that turns it on.
        tensors: of the float model, in graph order.
        sizes: the graph outputs that give the number of elements of each tensor, int64 scalars.
    """

    name: str
    tensors: tuple[str, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SwitchedModel:
    """Computes what the float model does; with all switches on, as if its activations were quantized.

    Attributes:
        model: its outputs are the float model's, then the sizes.
        outputs: names of the float model's outputs.
        switches: in graph order.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    switches: tuple[Switch, ...]

    def feeds(self, on: frozenset[str]) -> dict[str, NDArray[np.generic]]:
        """The inputs that turn these switches on, by name, and all others off."""
        return {switch.name: np.array(switch.name in on) for switch in self.switches}


def switched_model(model: onnx.ModelProto, quantized: onnx.ModelProto) -> SwitchedModel:
    """Put the activation quantizers of a Q/DQ model into the float model that it was made from, each with a switch.

    Tensors are the same where their names are. A quantizer of a tensor that the float model does not have is left out.

    Args:
        model: the float model; not changed.
        quantized: the Q/DQ model; not changed.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    outputs = tuple(output.name for output in copy.graph.output)
    switching = _Switching(copy.graph, quantized)
    switching.rewire()
    _import_all(copy, quantized)
    return SwitchedModel(copy, outputs, switching.switches)


class _Switching:
    """Puts switches into a graph.

    Args:
        graph: of a float model; changed by `rewire`.
        quantized: the Q/DQ model whose quantizers they are.
    """

    def __init__(self, graph: onnx.GraphProto, quantized: onnx.ModelProto) -> None:
        self._graph, self._editor = graph, GraphEditor(graph)
        self._inputs = {value.name for value in graph.input}
        made = {*self._inputs, *(name for node in graph.node for name in node.output)}
        self._pairs = {tensor: pair for tensor, pair in _quantizers(quantized).items() if tensor in made}
        fresh = self._editor.fresh_name
        # A tensor's readers see what comes out of its switch under the old name; a graph input keeps its own.
        self._before = {tensor: tensor if tensor in self._inputs else fresh(tensor) for tensor in self._pairs}
        self._behind = {tensor: fresh(tensor) if tensor in self._inputs else tensor for tensor in self._pairs}
        by_parameters: dict[tuple[str, ...], list[str]] = {}
        for tensor, (quantize, _) in self._pairs.items():
            by_parameters.setdefault(tuple(quantize.input[1:]), []).append(tensor)
        self.switches = tuple(
            Switch(fresh(f"{tensors[0]}_is_quantized"), tuple(tensors), tuple(fresh(f"{t}_size") for t in tensors))
            for tensors in by_parameters.values()
        )
        self._parameters = {name: fresh(name) for key in by_parameters for name in key}
        self._constants = [tensor for tensor in quantized.graph.initializer if tensor.name in self._parameters]

    def rewire(self) -> None:
        """Put them in, with their inputs and the outputs that count elements."""
        graph = self._graph
        del graph.value_info[:]  # of tensors that get other names
        rename_tensors(graph, {tensor: self._behind[tensor] for tensor in self._pairs if tensor in self._inputs})
        for value in graph.input:
            value.name = next((t for t, name in self._behind.items() if name == value.name), value.name)
        for tensor in self._constants:
            kept = graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = self._parameters[tensor.name]
        nodes = [new for tensor in self._pairs if tensor in self._inputs for new in self._nodes(tensor)]
        for node in graph.node:
            own = [name for name in node.output if name in self._pairs]
            node.output[:] = [self._before.get(name, name) for name in node.output]
            nodes.append(node)
            nodes.extend(new for name in own for new in self._nodes(name))
        del graph.node[:]
        graph.node.extend(nodes)
        for switch in self.switches:
            graph.input.append(helper.make_tensor_value_info(switch.name, TensorProto.BOOL, []))
            graph.output.extend(helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in switch.sizes)

    def _nodes(self, tensor: str) -> Iterator[onnx.NodeProto]:
        """What is computed of a tensor: If, so that what is off costs a copy, and Size."""
        switch = next(switch for switch in self.switches if tensor in switch.tensors)
        before, (codes, real, same) = self._before[tensor], (self._editor.fresh_name(tensor) for _ in range(3))
        pair = []
        for node, source, result in zip(self._pairs[tensor], (before, codes), (codes, real), strict=True):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [source, *(self._parameters[name] for name in node.input[1:])]
            copy.output[:] = [result]
            pair.append(copy)
        on = helper.make_graph(pair, "on", [], [onnx.ValueInfoProto(name=real)])
        identity = helper.make_node("Identity", [before], [same])
        off = helper.make_graph([identity], "off", [], [onnx.ValueInfoProto(name=same)])
        yield helper.make_node("If", [switch.name], [self._behind[tensor]], then_branch=on, else_branch=off)
        yield helper.make_node("Size", [before], [switch.sizes[switch.tensors.index(tensor)]])


def _quantizers(quantized: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
    """QuantizeLinear and DequantizeLinear of each activation, by the name that the float model has for it, in order."""
    graph = quantized.graph
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            readers.setdefault(node.input[0], []).append(node)
    found: dict[str, tuple[onnx.NodeProto, onnx.NodeProto]] = {}
    for node in graph.node:
        behind = readers.get(node.output[0], []) if node.op_type == "QuantizeLinear" else []
        if not behind or node.input[0] in constants or not constants.issuperset(node.input[1:]):
            continue
        # A graph output keeps its name behind the DequantizeLinear.
        delivered = [reader.output[0] for reader in behind if reader.output[0] in outputs]
        found.setdefault(delivered[0] if delivered else node.input[0], (node, behind[0]))
    return found


def _import_all(model: onnx.ModelProto, other: onnx.ModelProto) -> None:
    known = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in other.opset_import if entry.domain not in known)
    model.ir_version = max(model.ir_version, other.ir_version)
