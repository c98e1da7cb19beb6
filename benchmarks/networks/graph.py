"""A network with random weights, made one operator at a time and run on samples as it grows.

Weights are drawn as He et al. 2015 (https://arxiv.org/abs/1502.01852) say, with a log-normal spread of output channels,
as trained networks have one. What a BatchNormalization subtracts and divides by is what its input has on the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

__all__ = ["Graph", "Tensor"]

Floats = NDArray[np.float32]
_OPSET = 17
_IR = 8
_SPREAD = 0.4  # standard deviation of the logarithm of a channel's gain
_EPSILON = 1e-5


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of the graph, and its values on the samples."""

    name: str
    values: NDArray[Any]

    @property
    def channels(self) -> int:
        """The length of the second axis."""
        return int(self.values.shape[1])


class Graph:
    """A model under construction.

    Args:
        samples: what the input is on the samples; the first axis is the batch, which the model leaves free.
        seed: of the weights.
    """

    def __init__(self, samples: NDArray[Any], seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self.input = Tensor("input", samples)

    def op(self, kind: str, *inputs: Tensor | NDArray[Any], **attributes: Any) -> Tensor:
        """The output of an operator; arrays become initializers."""
        return self.ops(kind, *inputs, outputs=1, **attributes)[0]

    def ops(self, kind: str, *inputs: Tensor | NDArray[Any], outputs: int, **attributes: Any) -> list[Tensor]:
        """All outputs of an operator with so many."""
        name = f"{kind}_{len(self._nodes)}"
        constants = [
            numpy_helper.from_array(array, f"{name}.{index}")
            for index, array in enumerate(inputs)
            if isinstance(array, np.ndarray)
        ]
        tensors = [one for one in inputs if isinstance(one, Tensor)]
        names = [one.name if isinstance(one, Tensor) else f"{name}.{index}" for index, one in enumerate(inputs)]
        made = [f"{name}_out{index}" if outputs > 1 else f"{name}_out" for index in range(outputs)]
        node = helper.make_node(kind, names, made, name=name, **attributes)
        self._nodes.append(node)
        self._constants += constants
        return [Tensor(*pair) for pair in zip(made, _values(node, tensors, constants), strict=True)]

    def drawn(self, shape: Sequence[int], inputs: int, gain: float = 2.0) -> Floats:
        """A weight whose first axis is the outputs, each the sum of so many inputs: its variance is gain / inputs."""
        spread = np.exp(_SPREAD * self._random.standard_normal(shape[0])).astype(np.float32)
        weight = self._random.standard_normal(shape, np.float32) * np.float32(np.sqrt(gain / inputs))
        return weight * spread.reshape(-1, *[1] * (len(shape) - 1))

    def small(self, *shape: int) -> Floats:
        """Values around 0 with a standard deviation of 0.1: a bias, a token, ..."""
        return np.float32(0.1) * self._random.standard_normal(shape, np.float32)

    def conv(
        self, x: Tensor, outputs: int, kernel: int = 1, *, stride: int = 1, group: int = 1, bias: bool = False
    ) -> Tensor:
        """A convolution, padded so that with stride 1 the size stays."""
        inputs = x.channels // group
        weight = self.drawn((outputs, inputs, kernel, kernel), inputs * kernel**2)
        pad = kernel // 2 if stride < kernel else 0  # patches that do not overlap need none
        return self.op(
            "Conv", x, weight, *([self.small(outputs)] if bias else []),
            kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group,
        )  # fmt: skip

    def batch_norm(self, x: Tensor) -> Tensor:
        """Batch normalization with the samples' statistics, scales around 1 and small shifts."""
        axes = (0, *range(2, x.values.ndim))
        mean, variance = x.values.mean(axes, dtype=np.float64), x.values.var(axes, dtype=np.float64)
        scale = np.exp(np.float32(0.2) * self._random.standard_normal(x.channels, np.float32))
        statistics = (mean.astype(np.float32), (variance + _EPSILON).astype(np.float32))
        return self.op("BatchNormalization", x, scale, self.small(x.channels), *statistics, epsilon=_EPSILON)

    def layer_norm(self, x: Tensor) -> Tensor:
        """Layer normalization over the last axis."""
        width = x.values.shape[-1]
        scale = np.exp(np.float32(0.2) * self._random.standard_normal(width, np.float32))
        return self.op("LayerNormalization", x, scale, self.small(width), axis=-1, epsilon=_EPSILON)

    def linear(self, x: Tensor, outputs: int, gain: float = 1.0) -> Tensor:
        """MatMul and Add over the last axis, as exporters write a linear layer of sequences."""
        inputs = x.values.shape[-1]
        weight = np.ascontiguousarray(self.drawn((outputs, inputs), inputs, gain).T)
        return self.op("Add", self.op("MatMul", x, weight), self.small(outputs))

    def dense(self, x: Tensor, outputs: int, gain: float = 2.0) -> Tensor:
        """Gemm: a linear layer of (N, inputs)."""
        inputs = x.values.shape[-1]
        return self.op("Gemm", x, self.drawn((outputs, inputs), inputs, gain), self.small(outputs), transB=1)

    def silu(self, x: Tensor) -> Tensor:
        """x * sigmoid(x), in two operators, as exporters write it."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gelu(self, x: Tensor) -> Tensor:
        """The Gelu by its formula with Erf, as exporters write it."""
        erf = self.op("Erf", self.op("Div", x, np.array(np.sqrt(2), np.float32)))
        half = self.op("Mul", x, self.op("Add", erf, np.array(1, np.float32)))
        return self.op("Mul", half, np.array(0.5, np.float32))

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Reshape; 0 keeps an axis, -1 takes what is left."""
        return self.op("Reshape", x, np.array(shape, np.int64))

    def resize(self, x: Tensor, factor: int, mode: str = "nearest") -> Tensor:
        """An image so many times as large."""
        empty = np.zeros(0, np.float32)
        scales = np.array([1, 1, factor, factor], np.float32)
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if mode == "nearest" else {}
        return self.op("Resize", x, empty, scales, mode=mode, **how)

    def pooled(self, x: Tensor) -> Tensor:
        """(N, channels), the mean over all positions."""
        return self.op("Flatten", self.op("GlobalAveragePool", x))

    def model(self, *outputs: Tensor) -> onnx.ModelProto:
        """The model, which is valid, with the batch as a free axis `N`."""
        infos = [
            helper.make_tensor_value_info(
                tensor.name,
                helper.np_dtype_to_tensor_dtype(tensor.values.dtype),
                ["N", *tensor.values.shape[1:]],
            )
            for tensor in (self.input, *outputs)
        ]
        graph = helper.make_graph(self._nodes, "network", infos[:1], infos[1:], self._constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _values(node: onnx.NodeProto, inputs: list[Tensor], constants: list[onnx.TensorProto]) -> list[NDArray[Any]]:
    """What one node makes of its inputs."""
    feeds = {one.name: one.values for one in inputs}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(values.dtype), values.shape)
        for name, values in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output]
    graph = helper.make_graph([node], "one", infos, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made: list[NDArray[Any]] = session.run(None, feeds)
    return made
