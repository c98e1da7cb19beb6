"""Random Gemm and MatMul for property tests: every attribute, every form of the bias, float and quantized by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

STEP = np.float32(1 / 32)
X_ZERO = np.uint8(120)


@dataclass(frozen=True, kw_only=True)
class ProductCase:
    """One node, [layer], of x and a weight.

    Attributes:
        op_type: "Gemm" or "MatMul".
        attributes: of the node.
        weight_first: the weight is the first input.
        x: its first axis counts samples, unless the product is of transA.
        weight_q: int8; the weight is scale times it.
        scale: of the weight, 0-d or (outputs,).
        bias_q: int32, quantized with the step of a 64th; None: there is none.
        off: how far the float weight is from the quantized one, of its shape.
    """

    op_type: str
    attributes: dict[str, Any]
    weight_first: bool
    x: np.ndarray
    weight_q: np.ndarray
    scale: np.ndarray
    bias_q: np.ndarray | None
    off: np.ndarray

    @property
    def channel_axis(self) -> int:
        return 0 if self.weight_first or self.attributes.get("transB") else 1

    @property
    def float_model(self) -> onnx.ModelProto:
        scale = self.scale.reshape([-1 if axis == self.channel_axis else 1 for axis in range(2)])
        constants = {"w": scale * (self.weight_q + self.off)}
        if self.bias_q is not None:
            constants["b"] = self.bias_q / 64
        return self._model([self._node("x")], {name: array.astype(np.float32) for name, array in constants.items()})

    @property
    def quantized(self) -> onnx.ModelProto:
        per_channel = {"axis": self.channel_axis} if self.scale.ndim else {}
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "step", "x_zero"], ["x_q"]),
            helper.make_node("DequantizeLinear", ["x_q", "step", "x_zero"], ["x_real"]),
            helper.make_node("DequantizeLinear", ["w_q", "w_scale"], ["w"], **per_channel),
        ]
        constants = {"step": STEP, "x_zero": X_ZERO, "w_q": self.weight_q, "w_scale": self.scale}
        if self.bias_q is not None:
            nodes.append(helper.make_node("DequantizeLinear", ["b_q", "b_scale"], ["b"]))
            constants |= {"b_q": self.bias_q, "b_scale": np.float32(1 / 64)}
        return self._model([*nodes, self._node("x_real")], constants)

    def _node(self, x: str) -> onnx.NodeProto:
        inputs = ["w", x] if self.weight_first else [x, "w"]
        if self.bias_q is not None:
            inputs.append("b")
        return helper.make_node(self.op_type, inputs, ["y"], "layer", **self.attributes)

    def _model(self, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
        samples = self.x.shape[0] if self.attributes.get("transA") else "N"
        graph = helper.make_graph(
            nodes,
            "product",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [samples, *self.x.shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * self.x.ndim)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@st.composite
def product_cases(draw: st.DrawFn) -> ProductCase:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    samples, inputs, outputs = draw(st.integers(10, 20)), draw(st.integers(1, 6)), draw(st.integers(1, 6))
    attributes: dict[str, Any] = {}
    op_type, weight_first, bias = draw(st.sampled_from(["Gemm", "MatMul"])), False, None
    shape = [samples, inputs]
    if op_type == "Gemm":
        attributes = {
            "transA": draw(st.integers(0, 1)),
            "transB": draw(st.integers(0, 1)),
            "alpha": draw(st.sampled_from([1.0, 0.5, -2.0])),
            "beta": draw(st.sampled_from([1.0, 0.25, -3.0, 0.0])),
        }
        attributes = {name: value for name, value in attributes.items() if draw(st.booleans())}
        shape = shape[::-1] if attributes.get("transA") else shape
        form = draw(st.sampled_from([None, (outputs,), (1, outputs)]))
        bias = None if form is None else rng.integers(-99, 99, form).astype(np.int32)
    else:
        weight_first = draw(st.booleans())
        leading = draw(st.lists(st.integers(1, 3), max_size=2))
        last = draw(st.integers(1, 4))
        shape = [samples, *leading, *((inputs, last) if weight_first else (last, inputs))]
        if not weight_first and draw(st.booleans()):
            shape = [samples, inputs]
    rows_first = weight_first or attributes.get("transB")
    weight_shape = (outputs, inputs) if rows_first else (inputs, outputs)
    per_channel = draw(st.booleans())
    return ProductCase(
        op_type=op_type,
        attributes=attributes,
        weight_first=weight_first,
        x=rng.standard_normal(shape).astype(np.float32),
        weight_q=rng.integers(-100, 101, weight_shape).astype(np.int8),
        scale=rng.uniform(0.01, 0.05, (outputs,) if per_channel else ()).astype(np.float32),
        bias_q=bias,
        off=rng.uniform(-0.5, 0.5, weight_shape),
    )
