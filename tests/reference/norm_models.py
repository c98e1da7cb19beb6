"""Models of one normalization, float and quantized by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import numpy_helper

STEP = np.float32(1 / 16)  # of the integers of scale and bias: their products with it are exact
X_ZERO = np.uint8(128)
GIVEN = {  # what the quantized model feeds the normalization
    "float": "given = Identity(x)",
    "8 bits": "x_q = QuantizeLinear(x, x_step, x_zero) given = DequantizeLinear(x_q, x_step, x_zero)",
}


@dataclass(frozen=True, kw_only=True)
class NormModels:
    """The node [layer] reads x; both models return its output y.

    Attributes:
        op: with its attributes.
        shape: of x; the first axis counts samples.
        samples: the length of the first axis; "N" where it stays open.
        scale_q, bias_q: int8 or uint8, and int32; they stand for STEP times them.
        scale_zero: zero point of scale_q.
        more: the inputs behind the bias, float32.
        off: what the float model's scale and bias are, more than the quantized one's.
        given: of `GIVEN`.
        end: what makes y of the node's output z; quantized_end: in the quantized model, where it is another.
        constants: that they read.
    """

    op: str
    shape: tuple[int, ...]
    scale_q: np.ndarray
    bias_q: np.ndarray | None = None
    scale_zero: int = 0
    more: tuple[np.ndarray, ...] = ()
    samples: int | str = "N"
    off: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 0.0)
    given: str = "8 bits"
    x_zero: np.generic = X_ZERO
    opset: int = 21
    end: str = "y = Identity(z)"
    quantized_end: str = ""
    constants: tuple[tuple[str, np.ndarray | float], ...] = ()

    @property
    def scale(self) -> np.ndarray:
        return STEP * (self.scale_q.astype(np.float32) - self.scale_zero)

    @property
    def float_model(self) -> onnx.ModelProto:
        constants = {"scale": self.scale + self.off[0]}
        if self.bias_q is not None:
            constants["bias"] = STEP * self.bias_q + self.off[1]
        return self._model(f"[layer] z = {self._node('x')} {self.end}", constants)

    @property
    def quantized(self) -> onnx.ModelProto:
        constants: dict[str, Any] = {
            "x_step": np.float32(1 / 32), "x_zero": self.x_zero, "step": STEP, "scale_q": self.scale_q,
            "scale_zero": self.scale_q.dtype.type(self.scale_zero),
        }  # fmt: skip
        text = f"{GIVEN[self.given]} scale = DequantizeLinear(scale_q, step, scale_zero) "
        if self.bias_q is not None:
            text += "bias = DequantizeLinear(bias_q, step) "
            constants["bias_q"] = self.bias_q
        return self._model(f"{text} [layer] z = {self._node('given')} {self.quantized_end or self.end}", constants)

    def _node(self, x: str) -> str:
        inputs = [x, "scale", *(["bias"] if self.bias_q is not None else [])]
        return f"{self.op}({', '.join([*inputs, *(f'more{i}' for i in range(len(self.more)))])})"

    def _model(self, text: str, constants: dict[str, Any]) -> onnx.ModelProto:
        """Not checked: onnx takes GroupNormalization of opset 18 for an error, onnxruntime runs it."""
        shape = ",".join(map(str, (self.samples, *self.shape[1:])))
        any_shape = ",".join("ABCDEF"[: len(self.shape)])
        model = onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": {self.opset}]> '
            f"g (float[{shape}] x) => (float[{any_shape}] y) {{ {text} }}"
        )
        constants |= {f"more{i}": values for i, values in enumerate(self.more)} | dict(self.constants)
        for name, value in constants.items():
            array = np.asarray(value)
            array = array.astype(np.float32) if array.dtype.kind == "f" else array
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        return model


def norm_models(op_type: str, *, seed: int = 0, size: int = 5, **options: Any) -> NormModels:
    """One of each kind, with 6 elements of the scale; LayerNormalization over the last axis, the others on images.

    The float model's scale and bias lie up to nine tenths of a step off: the nearest integers are others.
    """
    rng = np.random.default_rng(seed)
    elements, shape, more = 6, (1, 6, size, size), ()
    op = op_type
    match op_type:
        case "LayerNormalization":
            shape = (1, size * size, 6)
        case "GroupNormalization":
            op += "<num_groups = 3>"
        case "BatchNormalization":
            more = (rng.standard_normal(6).astype(np.float32), rng.uniform(0.5, 2, 6).astype(np.float32))
    near = tuple(STEP * rng.uniform(-0.9, 0.9, elements).astype(np.float32) for _ in range(2))
    given: dict[str, Any] = {
        "op": op,
        "shape": shape,
        "scale_q": rng.integers(5, 30, elements).astype(np.int8),
        "bias_q": rng.integers(-30, 30, elements).astype(np.int32),
        "more": more,
        "off": near,
    }
    return NormModels(**given | options)


def draw_sizes(data: st.DataObject, least: int, most: int) -> tuple[int, ...]:
    return tuple(data.draw(st.lists(st.integers(1, 5), min_size=least, max_size=most), label="sizes"))


def draw_models(data: st.DataObject, op_type: str) -> NormModels:
    """Any shape, axis, epsilon, number of groups and form of the scale that onnxruntime takes."""
    rng = np.random.default_rng(data.draw(st.integers(0, 999), label="seed"))
    epsilon = data.draw(st.sampled_from([1e-5, 1e-3, 0.5]), label="epsilon")
    opset, more = 21, ()
    match op_type:
        case "LayerNormalization":
            shape = (3, *draw_sizes(data, 1, 3))
            rank = len(shape)
            axis = data.draw(st.integers(-rank, rank - 1), label="axis")
            scale_rank = data.draw(st.integers(0, rank), label="rank of the scale")
            differs = data.draw(st.lists(st.booleans(), min_size=rank, max_size=rank), label="the scale differs")
            along = (1, *(size if d else 1 for size, d in zip(shape[1:], differs[1:], strict=True)))
            scale_shape, op = along[rank - scale_rank :], f"LayerNormalization<axis = {axis}, epsilon = {epsilon}>"
        case "GroupNormalization":
            groups, opset = data.draw(st.integers(1, 3), label="groups"), data.draw(st.sampled_from([18, 21]))
            channels = groups * data.draw(st.integers(1, 3), label="channels of a group")
            shape = (3, channels, *draw_sizes(data, 1, 2))
            scale_shape = (groups if opset == 18 else channels,)
            op = f"GroupNormalization<num_groups = {groups}, epsilon = {epsilon}>"
        case _:
            shape = (3, *draw_sizes(data, 2, 4))
            scale_shape, op = shape[1:2], f"{op_type}<epsilon = {epsilon}>"
            if op_type == "BatchNormalization":
                more = (rng.standard_normal(scale_shape), rng.uniform(0.5, 2, scale_shape))
    kind = data.draw(st.sampled_from([np.int8, np.uint8]), label="scale")
    with_bias = op_type != "LayerNormalization" or data.draw(st.booleans(), label="bias")
    return NormModels(
        op=op,
        shape=shape,
        scale_q=rng.integers(1, 100, scale_shape).astype(kind),
        bias_q=rng.integers(-50, 50, scale_shape).astype(np.int32) if with_bias else None,
        scale_zero=data.draw(st.sampled_from([0, 3]), label="zero point"),
        more=more,
        given=data.draw(st.sampled_from(["float", "8 bits"]), label="input"),
        x_zero=data.draw(st.sampled_from([np.uint8(100), np.int8(-20)]), label="its zero point"),
        opset=opset,
    )
