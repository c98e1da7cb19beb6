"""Random models for property tests: branches, skip connections, inputs and outputs, constant nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

SIDE = 4


@dataclass
class RandomGraph:
    """A model of named nodes over tensors (N, channels, SIDE, SIDE), and what a test needs to know of it.

    Attributes:
        channels: of every dynamic tensor, inputs included.
    """

    channels: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, op: str, reads: list[str], channels: list[int], **attributes: object) -> None:
        name = f"node{len(self.nodes)}"
        makes = [f"{name}_{i}" for i in range(len(channels))]
        self.nodes.append(helper.make_node(op, reads, makes, name=name, **attributes))
        self.channels.update(zip(makes, channels, strict=True))

    def constant(self, value: np.ndarray) -> str:
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def quantized_constant(self, value: np.ndarray) -> str:
        """int8 and a node that dequantizes it, as a Q/DQ model has it."""
        name = f"dequantize{len(self.nodes)}"
        reads = [self.constant(v) for v in (value.astype(np.int8), np.float32(0.1), np.int8(0))]
        self.nodes.append(helper.make_node("DequantizeLinear", reads, [name], name=name))
        return name

    @property
    def model(self) -> onnx.ModelProto:
        def value(name: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", self.channels[name], SIDE, SIDE])

        graph = helper.make_graph(
            self.nodes,
            "random",
            [value(name) for name in self.inputs],
            [value(name) for name in self.outputs],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model


@st.composite
def random_graphs(draw: st.DrawFn) -> RandomGraph:
    graph = RandomGraph()
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    for i in range(draw(st.integers(1, 3))):
        graph.inputs.append(f"input{i}")
        graph.channels[f"input{i}"] = draw(st.integers(1, 3))
    for _ in range(draw(st.integers(1, 12))):
        x = draw(st.sampled_from(sorted(graph.channels)))
        channels = graph.channels[x]
        alike = sorted(name for name, count in graph.channels.items() if count == channels)
        op = draw(st.sampled_from(["Add", "Mul", "Relu", "Concat", "Conv", "QuantizedConv", "Split", "Shift"]))
        if op in ("Add", "Mul"):
            graph.add(op, [x, draw(st.sampled_from(alike))], [channels])
        elif op == "Relu":
            graph.add(op, [x], [channels])
        elif op == "Concat":
            y = draw(st.sampled_from(sorted(graph.channels)))
            graph.add(op, [x, y], [channels + graph.channels[y]], axis=1)
        elif op == "Split" and channels > 1:
            parts = [1, channels - 1]
            graph.add(op, [x, graph.constant(np.array(parts))], parts, axis=1)
        elif op == "Shift":
            graph.add("Add", [x, graph.quantized_constant(rng.integers(-9, 9, (channels, 1, 1)))], [channels])
        elif op in ("Conv", "QuantizedConv"):
            outputs = draw(st.integers(1, 3))
            weight = rng.integers(-9, 9, (outputs, channels, 3, 3))
            make = graph.quantized_constant if op == "QuantizedConv" else graph.constant
            weight = weight if op == "QuantizedConv" else weight.astype(np.float32)
            graph.add("Conv", [x, make(weight)], [outputs], pads=[1, 1, 1, 1])
    if not graph.nodes:
        graph.add("Relu", ["input0"], [graph.channels["input0"]])
    made = sorted(set(graph.channels) - set(graph.inputs))
    graph.outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True))
    return graph
