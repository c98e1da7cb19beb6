"""A float model with a switch at each activation quantizer, so that one session measures any set of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quark.onnx.config.data_type import DATA_TYPES
from quark.onnx.graph.editor import GraphEditor, rename_tensors

__all__ = ["Switch", "SwitchedModel", "activation_quantizers", "switched_model"]

_STEPS = (1 << 16) - 1  # of 16 bits
_RANGES = {
    getattr(TensorProto, kind.element_type): (kind.qmin, kind.qmax) for kind in DATA_TYPES.values() if kind.element_type
}


@dataclass(frozen=True)
class Switch:
    """One scale and zero_point, and all that goes through them.

    Attributes:
        name: of the graph input, a bool scalar, that turns it on.
        fine: of the graph input, a bool scalar, that gives it 16 bits over the same range where it is on.
        tensors: of the float model, in graph order.
    """

    name: str
    fine: str
    tensors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SwitchedModel:
    """Computes what the float model does; with all switches on, as if its activations were quantized.

    Attributes:
        model: its outputs are the float model's.
        outputs: their names.
        switches: in graph order.
    """

    model: onnx.ModelProto
    outputs: tuple[str, ...]
    switches: tuple[Switch, ...]

    @property
    def off(self) -> dict[str, NDArray[np.generic]]:
        """The inputs that turn the switches, by name, with all of them off."""
        return {name: np.array(False) for switch in self.switches for name in (switch.name, switch.fine)}

    def feeds(self, on: frozenset[str], fine: frozenset[str] = frozenset()) -> dict[str, NDArray[np.generic]]:
        """The inputs that turn these switches on; `fine` are those with 16 bits."""
        turned = [switch.name for switch in self.switches if switch.name in on]
        turned += [switch.fine for switch in self.switches if switch.name in on & fine]
        return {name: np.array(True) for name in turned}


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
        self._pairs = {tensor: pair for tensor, pair in activation_quantizers(quantized).items() if tensor in made}
        fresh = self._editor.fresh_name
        # A tensor's readers see what comes out of its switch under the old name; a graph input keeps its own.
        self._before = {tensor: tensor if tensor in self._inputs else fresh(tensor) for tensor in self._pairs}
        self._behind = {tensor: fresh(tensor) if tensor in self._inputs else tensor for tensor in self._pairs}
        by_parameters: dict[tuple[str, ...], list[str]] = {}
        for tensor, (quantize, _) in self._pairs.items():
            by_parameters.setdefault(tuple(quantize.input[1:]), []).append(tensor)
        self.switches = tuple(
            Switch(
                fresh(f"{tensors[0]}_is_quantized"),
                fresh(f"{tensors[0]}_has_16_bits"),
                tuple(tensors),
            )
            for tensors in by_parameters.values()
        )
        self._of = {tensor: switch for switch in self.switches for tensor in switch.tensors}
        self._parameters = {name: fresh(name) for key in by_parameters for name in key}
        self._constants = {
            tensor.name: tensor for tensor in quantized.graph.initializer if tensor.name in self._parameters
        }

    def rewire(self) -> None:
        """Put them in, with their inputs."""
        graph = self._graph
        del graph.value_info[:]  # of tensors that get other names
        rename_tensors(graph, {tensor: self._behind[tensor] for tensor in self._pairs if tensor in self._inputs})
        for value in graph.input:
            value.name = next((t for t, name in self._behind.items() if name == value.name), value.name)
        for tensor in self._constants.values():
            kept = graph.initializer.add()
            kept.CopyFrom(tensor)
            kept.name = self._parameters[tensor.name]
        nodes = [self._switch(tensor) for tensor in self._pairs if tensor in self._inputs]
        for node in graph.node:
            own = [name for name in node.output if name in self._pairs]
            node.output[:] = [self._before.get(name, name) for name in node.output]
            nodes.append(node)
            nodes.extend(map(self._switch, own))
        del graph.node[:]
        graph.node.extend(nodes)
        for switch in self.switches:
            for name in (switch.name, switch.fine):
                graph.input.append(helper.make_tensor_value_info(name, TensorProto.BOOL, []))

    def _switch(self, tensor: str) -> onnx.NodeProto:
        """What is computed of a tensor: an If, so that what is off costs a copy."""
        switch = self._of[tensor]
        before, behind = self._before[tensor], self._behind[tensor]
        pair = self._branch("on", self._pair(tensor))
        finer = self._fine(tensor)
        fine = self._branch("fine", finer) if finer else pair
        either = self._node("If", switch.fine, then_branch=fine, else_branch=pair)
        off = self._branch("off", [self._node("Identity", before)])
        whole = self._node("If", switch.name, then_branch=self._branch("quantized", [either]), else_branch=off)
        whole.output[:] = [behind]
        return whole

    def _pair(self, tensor: str) -> list[onnx.NodeProto]:
        """QuantizeLinear and DequantizeLinear."""
        nodes, source = list[onnx.NodeProto](), self._before[tensor]
        for node in self._pairs[tensor]:
            nodes.append(self._copy(node, source))
            source = nodes[-1].output[0]
        return nodes

    def _fine(self, tensor: str) -> list[onnx.NodeProto]:
        """Quantization to 16 bits over the same range, and back; none where the codes are no narrower integers of one
        scale. Operators on floats do it, as QuantizeLinear has 16 bits from opset 21 on only.
        """
        dequantize = self._pairs[tensor][1]
        scale, *zero_point = (self._constants[name] for name in dequantize.input[1:])
        kind = zero_point[0].data_type if zero_point else TensorProto.UINT8
        qmin, qmax = _RANGES.get(kind, (0, 0))
        if scale.dims or not 0 < qmax - qmin < _STEPS:
            return []
        codes = (self._constant(tensor, kind, code) for code in (qmin, qmax))
        lowest, highest = (self._copy(dequantize, code) for code in codes)
        # Both are multiples of the 8-bit scale, and that of the 16-bit one: 0 stays 0.
        step = float(onnx.numpy_helper.to_array(scale)) * (qmax - qmin) / _STEPS
        width = self._constant(tensor, TensorProto.FLOAT, step)
        clipped = self._node("Clip", self._before[tensor], lowest.output[0], highest.output[0])
        steps = self._node("Div", clipped.output[0], width)
        rounded = self._node("Round", steps.output[0])
        return [lowest, highest, clipped, steps, rounded, self._node("Mul", rounded.output[0], width)]

    def _constant(self, tensor: str, kind: int, value: float) -> str:
        name = self._editor.fresh_name(tensor)
        self._graph.initializer.append(helper.make_tensor(name, kind, [], [value]))
        return name

    def _copy(self, node: onnx.NodeProto, source: str) -> onnx.NodeProto:
        """A quantizer, or its inverse, of another tensor."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.input[:] = [source, *(self._parameters[name] for name in node.input[1:])]
        copy.output[:] = [self._editor.fresh_name(source)]
        return copy

    def _node(self, op_type: str, *inputs: str, **attributes: onnx.GraphProto) -> onnx.NodeProto:
        return helper.make_node(op_type, inputs, [self._editor.fresh_name(op_type)], **attributes)

    def _branch(self, name: str, nodes: list[onnx.NodeProto]) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=nodes[-1].output[0])])


def activation_quantizers(quantized: onnx.ModelProto) -> dict[str, tuple[onnx.NodeProto, onnx.NodeProto]]:
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
