"""onnxruntime's QDQ quantizer in a time linear in the nodes: it looks for each name among all nodes and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from quark.onnx.graph.editor import subgraphs

__all__ = ["IndexedModel", "IndexedQuantizer"]


class IndexedModel(ONNXModel):  # type: ignore[misc]  # onnxruntime has no types
    """onnxruntime's helper, whose methods here give what they did, from indexes.

    onnxruntime looks for one initializer by going through `initializer()`. While `only` is in force, this gives no more
    than the ones that are asked for.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(model)
        self._initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._inputs = {value.name for value in model.graph.input}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._makers: dict[str, list[onnx.NodeProto]] = {}
        self._asked: list[onnx.TensorProto] | None = None
        self._node_names = {node.name for node in model.graph.node}
        for node in model.graph.node:
            self._index(node)

    def _index(self, node: onnx.NodeProto) -> None:
        for name in dict.fromkeys(node.input):
            self._readers.setdefault(name, []).append(node)
        for name in dict.fromkeys(node.output):
            self._makers.setdefault(name, []).append(node)

    @contextmanager
    def only(self, names: Iterable[str]) -> Iterator[None]:
        """Let `initializer()` give the initializers with these names."""
        before = self._asked
        self.look_at(names)
        try:
            yield
        finally:
            self._asked = before

    def look_at(self, names: Iterable[str]) -> None:
        """Let `initializer()` give the initializers with these names until something else is said."""
        self._asked = [self._initializers[name] for name in dict.fromkeys(names) if name in self._initializers]

    def initializer(self) -> Any:
        return self.model.graph.initializer if self._asked is None else self._asked

    def initializer_extend(self, inits: list[onnx.TensorProto]) -> None:
        for tensor in inits:
            self.model.graph.initializer.append(tensor)
            self._initializers.setdefault(tensor.name, self.model.graph.initializer[-1])

    def add_initializer(self, tensor: onnx.TensorProto) -> None:
        if tensor.name not in self._initializers:
            self.initializer_extend([tensor])

    def get_initializer(self, name: str) -> Any:
        return self._initializers.get(name)

    def remove_initializer(self, tensor: onnx.TensorProto) -> None:
        """It goes in `clean_initializers`, as a node will make a tensor of its name."""

    def add_node(self, node: onnx.NodeProto) -> None:
        """Append a node, which gets a number where the model has a node of its name."""
        stem, count = node.name, 0
        while node.name in self._node_names:
            node.name, count = f"{stem}_{count}", count + 1
        self._node_names.add(node.name)
        self.model.graph.node.append(node)
        self._index(self.model.graph.node[-1])

    def remove_nodes(self, nodes_to_remove: list[onnx.NodeProto]) -> None:
        gone = {id(node) for node in nodes_to_remove}
        self._keep([node for node in self.model.graph.node if id(node) not in gone])

    def _keep(self, nodes: list[onnx.NodeProto]) -> None:
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        self.model.graph.ClearField("node")
        self.model.graph.node.extend(kept)
        self._readers, self._makers = {}, {}
        for node in self.model.graph.node:
            self._index(node)

    def replace_input_of_all_nodes(self, old_input_name: str, new_input_name: str) -> None:
        self._replace_input(old_input_name, new_input_name, None)

    def replace_input_of_nodes(self, old_input_name: str, new_input_name: str, node_names_set: set[str]) -> None:
        self._replace_input(old_input_name, new_input_name, node_names_set)

    def _replace_input(self, old: str, new: str, names: set[str] | None) -> None:
        readers = self._readers.pop(old, [])
        moved = [node for node in readers if names is None or node.name in names]
        for node in moved:
            self.replace_node_input(node, old, new)
        self._readers.setdefault(new, []).extend(moved)
        if names is not None:
            self._readers[old] = [node for node in readers if node.name not in names]

    def replace_output_of_all_nodes(self, old_output_name: str, new_output_name: str) -> None:
        makers = self._makers.pop(old_output_name, [])
        for node in makers:
            self.replace_node_output(node, old_output_name, new_output_name)
        self._makers.setdefault(new_output_name, []).extend(makers)

    def input_name_to_nodes(self) -> dict[str, list[onnx.NodeProto]]:
        return self._readers

    def is_graph_output(self, output_name: str) -> bool:
        return output_name in self._outputs

    def is_graph_input(self, tensor_name: str) -> bool:
        return tensor_name in self._inputs

    def clean_initializers(self) -> None:
        """Drop the initializers that nothing reads."""
        graph = self.model.graph
        read = {value.name for value in graph.output}.union(_read_in(graph))
        read.difference_update(name for node in graph.node for name in node.output)
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name in read]
        graph.ClearField("initializer")
        graph.initializer.extend(kept)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}


def _read_in(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for body in subgraphs(node):
            yield from (value.name for value in body.output)
            yield from _read_in(body)


class IndexedQuantizer(QDQQuantizer):  # type: ignore[misc]
    """Gives what onnxruntime's quantizer gives, by way of `IndexedModel`."""

    model: Any
    tensors_to_quantize: dict[str, Any]
    bias_to_quantize: dict[str, Any]

    def calc_graph_quant_params(self) -> dict[str, Any]:
        """The first of all steps, still in onnxruntime's constructor."""
        self.model = IndexedModel(self.model.model)
        found: dict[str, Any] = super().calc_graph_quant_params()
        return found

    def should_quantize_node(self, node: onnx.NodeProto) -> bool:
        """Asked for each node before its operator's quantizer, which looks for no other initializers than its own."""
        self.model.look_at((*node.input, *node.output))
        return bool(super().should_quantize_node(node))

    def is_input_a_initializer(self, input_name: str) -> bool:
        return self.model.get_initializer(input_name) is not None

    def _calc_initializer_quant_params(self) -> dict[str, Any]:
        whole, found = self.tensors_to_quantize, {}
        for name, info in whole.items():
            self.tensors_to_quantize = {name: info}
            with self.model.only([name]):
                found.update(super()._calc_initializer_quant_params())
        self.tensors_to_quantize = whole
        return found

    def _quantize_normal_tensors(self) -> None:
        whole, left = self.tensors_to_quantize, {}
        for name, info in whole.items():
            self.tensors_to_quantize = {name: info}
            with self.model.only([name]):
                super()._quantize_normal_tensors()
            left.update(self.tensors_to_quantize)
        self.tensors_to_quantize = left

    def _quantize_bias_tensors(self) -> None:
        whole = self.bias_to_quantize
        for name, info in whole.items():
            self.bias_to_quantize = {name: info}
            with self.model.only([name]):
                super()._quantize_bias_tensors()
        self.bias_to_quantize = whole

    def _get_tensor_quantization_scale(self, tensor_name: str, consumer_node_name: str) -> NDArray[np.float32] | None:
        if tensor_name not in self.quantized_value_map:
            return None
        scale = self.quantized_value_map[tensor_name].get_for_consumer(consumer_node_name).scale_name
        values: NDArray[np.float32] = numpy_helper.to_array(self.model.get_initializer(scale))
        return values
