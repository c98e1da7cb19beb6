"""What became of each tensor of a float model in its Q/DQ model, read off the nodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper


@dataclass(frozen=True)
class Quantized:
    """The quantization of one tensor.

    Attributes:
        kind: the type of its integers, as "uint8".
        scales: how many.
        axis: of the scales, None if there is one.
        zero: the zero points that occur.
        pair: Q and DQ, or (a constant) only DQ.
    """

    kind: str
    scales: int
    axis: int | None
    zero: tuple[int, ...]
    pair: bool

    @property
    def symmetric(self) -> bool:
        return self.zero == ({"uint4": 8, "uint8": 128, "uint16": 32768}.get(self.kind, 0),)


class QuantizedModel:
    """A Q/DQ model, whose nodes have the names of the float model's."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._made = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)

    def input(self, node: str, index: int = 0) -> Quantized | None:
        """How an input of a node is quantized; None: it is not."""
        return self._described(self._made.get(self.nodes[node].input[index]))

    def output(self, node: str) -> Quantized | None:
        """How the output of a node is quantized; None: it is not."""
        readers = self._readers.get(self.nodes[node].output[0], [])
        quantize = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        return self._described(self._readers[quantize[0].output[0]][0]) if quantize else None

    def scale(self, node: str, index: int = 0) -> np.ndarray:
        """Return the scale of an input of a node."""
        return self.constants[self._made[self.nodes[node].input[index]].input[1]]

    def integers(self, node: str, index: int = 1) -> np.ndarray:
        """Return the integers of a constant input of a node."""
        return self.constants[self._made[self.nodes[node].input[index]].input[0]]

    def _described(self, dequantize: onnx.NodeProto | None) -> Quantized | None:
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        scale, zero = (self.constants[name] for name in dequantize.input[1:3])
        axis = next((a.i for a in dequantize.attribute if a.name == "axis"), None)
        quantize = self._made.get(dequantize.input[0])
        if quantize is not None:
            assert quantize.op_type == "QuantizeLinear"
            assert list(quantize.input[1:]) == list(dequantize.input[1:])
        else:
            assert self.constants[dequantize.input[0]].dtype == zero.dtype
        assert scale.shape in (zero.shape, (1,))
        zeros = tuple(sorted({int(z) for z in zero.reshape(-1)}))
        return Quantized(zero.dtype.name, scale.size, axis if scale.size > 1 else None, zeros, quantize is not None)
