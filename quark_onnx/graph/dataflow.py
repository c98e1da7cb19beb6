"""Who makes and who reads each tensor of a graph, and the cut of a graph into segments."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from quark.onnx.graph.editor import constant_tensors, reads
from quark.onnx.graph.random_nodes import is_random

__all__ = ["Dataflow", "Segment"]


@dataclass(frozen=True)
class Segment:
    """Some nodes of a graph as a model of their own.

    Attributes:
        nodes: in graph order.
        inputs: dynamic tensors that the nodes read and do not make.
        outputs: tensors that the nodes make and somebody needs.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Dataflow:
    """The graph of a model, with its constants known.

    A node is constant when all it reads is constant (a DequantizeLinear of a weight, say). Constant nodes belong to
    every segment that reads them; the others run once.

    Attributes:
        initializers: the constant tensors by name; those of Constant nodes too.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.initializers = constant_tensors(model.graph)
        self.inputs = tuple(i.name for i in model.graph.input if i.name not in self.initializers)
        self.outputs = tuple(o.name for o in model.graph.output)
        self.producer = {name: node for node in model.graph.node for name in node.output if name}
        self._position = {id(node): index for index, node in enumerate(model.graph.node)}
        self._reads = {id(node): tuple(reads(node)) for node in model.graph.node}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in set(self.reads(node)):
                self._readers.setdefault(name, []).append(node)
        constant = set(self.initializers) | {""}
        self._constant_nodes: set[int] = set()
        for node in model.graph.node:
            if all(name in constant for name in self.reads(node)) and not is_random(node):
                constant.update(node.output)
                self._constant_nodes.add(id(node))
        self._constant = constant
        values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
        self._types = {value.name: value.type.tensor_type for value in values}

    def bytes_per_sample(self, tensor: str) -> float:
        """The size of a tensor whose first axis counts samples; NaN where the model leaves its shape open."""
        kind = self._types.get(tensor)
        if kind is None or not kind.elem_type or not kind.HasField("shape"):
            return math.nan
        lengths = [axis.dim_value if axis.HasField("dim_value") else math.nan for axis in kind.shape.dim[1:]]
        return math.prod(lengths) * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize

    def reads(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """What a node reads; what its subgraphs read from outside is among it."""
        return self._reads[id(node)]

    def readers(self, tensor: str) -> list[onnx.NodeProto]:
        """The nodes that read a tensor, in graph order."""
        return self._readers.get(tensor, [])

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone sees a tensor: nobody else reads it, and the model does not return it."""
        readers = self.readers(tensor)
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor does not depend on the model's inputs."""
        return tensor in self._constant

    def ancestors(self, targets: Iterable[str], available: Iterable[str]) -> list[onnx.NodeProto]:
        """The dynamic nodes needed to compute `targets` from `available` tensors, in graph order."""
        have = set(available)
        wanted, stack = dict[int, onnx.NodeProto](), [t for t in targets if t not in have]
        while stack:
            tensor = stack.pop()
            node = self.producer.get(tensor)
            if node is None or id(node) in wanted or id(node) in self._constant_nodes:
                continue
            wanted[id(node)] = node
            stack.extend(t for t in self.reads(node) if t not in have and not self.is_constant(t))
        return sorted(wanted.values(), key=lambda node: self._position[id(node)])

    def segment_model(self, segment: Segment, input_types: Mapping[str, int]) -> onnx.ModelProto:
        """A segment as a model with the present initializers. input_types: ONNX element types."""
        constants: list[onnx.NodeProto] = []
        initializers: dict[str, onnx.TensorProto] = {}
        seen: set[int] = set()

        def need(tensor: str) -> None:
            if tensor in self.initializers:
                initializers[tensor] = self.initializers[tensor]
                return
            node = self.producer.get(tensor)
            if node is None or id(node) not in self._constant_nodes or id(node) in seen:
                return
            seen.add(id(node))
            for name in self.reads(node):
                need(name)
            constants.append(node)

        for node in segment.nodes:  # which need not be nodes of this graph
            for tensor in reads(node):
                need(tensor)
        graph = onnx.GraphProto(name="segment")
        graph.node.extend([*constants, *segment.nodes])
        for name, tensor in initializers.items():
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = name  # that of a Constant node's tensor may be another
        for name in segment.inputs:
            value = graph.input.add(name=name)
            value.type.tensor_type.elem_type = input_types[name]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in segment.outputs)
        model = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        model.opset_import.extend(self.model.opset_import)
        model.functions.extend(self.model.functions)
        return model
