"""A random model while it is drawn: its random stream, its tensors with their shapes, and its nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSETS = (9, 11, 12, 13, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 21, 22, 23)
ODD_NAMES = (
    "{}_scale", "{}_zero_point", "{}_quantized", "{}_QuantizeLinear_Output", "{}_DequantizeLinear_Output", "/a/b/{}",
    "{} with spaces", "{}:0", "{}\u00e9", "{}_copy", "b{}_bias", "{}.weight",
)  # fmt: skip
Shape = tuple[int, ...]


@dataclass
class GraphInDrawing:
    """A model that is being drawn.

    Attributes:
        shapes: of the float tensors that nodes may read, inputs and outputs of nodes.
        constants: the initializers by name.
        operators: how many were drawn; some are several nodes.
    """

    seed: int
    random: np.random.Generator = field(init=False)
    opset: int = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, tuple[int, Shape]] = field(default_factory=dict)  # element type, shape
    others: dict[str, tuple[int, Shape]] = field(default_factory=dict)  # outputs that are no floats
    operators: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.opset = int(self.random.choice(OPSETS))

    # ---- drawing --------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def one_of(self, values: Sequence[object]) -> object:
        return values[int(self.random.integers(len(values)))]

    def count(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most + 1))

    def tensor(self, *ranks: int) -> str | None:
        """A float tensor of one of these ranks, the newest most often; None where there is none."""
        names = [name for name, shape in self.shapes.items() if not ranks or len(shape) in ranks]
        if not names:
            return None
        return names[-1 - min(int(self.random.geometric(0.5)) - 1, len(names) - 1)]

    def floats(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def weight(self, *shape: int, fan_in: int) -> str:
        """Now and then one that another layer has."""
        alike = [name for name, value in self.constants.items() if value.shape == shape and value.dtype == np.float32]
        if alike and self.chance(0.3):
            return str(self.one_of(alike))
        return self.constant(self.floats(*shape) / np.float32(math.sqrt(fan_in)))

    # ---- writing --------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        """A new name, now and then one that tools give to tensors of their own."""
        name = ""
        if self.chance(0.05):
            name = str(self.one_of(ODD_NAMES)).format(stem)
        elif self.chance(0.01):
            name = str(self.one_of(ODD_NAMES)).format(self.one_of([*self.shapes, stem]))
        number = len(self.names)
        while not name or name in self.names:
            name, number = f"{stem}{number}", number + 1
        self.names.add(name)
        return name

    def constant(self, value: np.ndarray) -> str:
        name = self.name("c")
        self.constants[name] = np.asarray(value)
        return name

    def node(self, op: str, reads: Sequence[str], outputs: int = 1, *, domain: str = "", **attributes: object) -> str:
        """Writes a node; its first output."""
        makes = [self.name("t") for _ in range(outputs)]
        title = "" if self.chance(0.2) else f"{op.lower()}_{len(self.nodes)}"
        node = helper.make_node(op, list(reads), makes, name=title, domain=domain, **attributes)
        self.nodes.append(node)
        self._infer(node)
        return makes[0]

    def _infer(self, node: onnx.NodeProto) -> None:
        """The shapes of a node's outputs, by ONNX's inference for it alone."""
        read = [name for name in node.input if name]
        values = [
            helper.make_tensor_value_info(name, kind, shape)
            for name, (kind, shape) in {
                **self.inputs, **{n: (TensorProto.FLOAT, s) for n, s in self.shapes.items()}, **self.others
            }.items()
            if name in read
        ]  # fmt: skip
        initializers = [numpy_helper.from_array(self.constants[name], name) for name in read if name in self.constants]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
        graph = helper.make_graph([node], "one", values, outputs, initializers)
        model = helper.make_model(graph, opset_imports=self.opsets())
        for value in onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph.output:
            tensor = value.type.tensor_type
            assert tensor.HasField("shape"), node
            shape = tuple(dim.dim_value for dim in tensor.shape.dim)
            if tensor.elem_type == TensorProto.FLOAT:
                self.shapes[value.name] = shape
            else:
                self.others[value.name] = (tensor.elem_type, shape)

    def opsets(self) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]

    def axes_node(self, op: str, x: str, axes: Sequence[int], since: int, **attributes: object) -> str:
        """An operator whose axes are an input from an opset on, and an attribute before."""
        if self.opset >= since:
            return self.node(op, [x, self.constant(np.array(axes, np.int64))], **attributes)
        return self.node(op, [x], axes=list(axes), **attributes)
