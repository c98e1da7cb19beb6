"""The graphs that exporters write for one operator, and the operator.

A new pattern gets a case here: the tests of the matcher, of fusion and of the loss go through all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

SIZES = (4, 6)  # of x behind its first axis
SCALE, BIAS = np.random.default_rng(11).normal(1, 0.5, (2, 6)).astype(np.float32)
WIDE_SCALE, WIDE_BIAS = np.random.default_rng(12).normal(1, 0.5, (2, *SIZES)).astype(np.float32)
SLOPE = np.random.default_rng(13).uniform(-0.5, 0.8, 6).astype(np.float32)
ROOT = np.sqrt(2 / np.pi)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One way to write an operator on x (N, 4, 6) with the output y.

    Attributes:
        text: the nodes, in ONNX's text form.
        numbers: that belong to the pattern: with another one, it is something else.
        parameters: constants that may be any.
        operator: the same as one node, in ONNX's text form, with the parameters that it reads.
        opset: of the graph.
    """

    text: str
    operator: str
    numbers: Mapping[str, float | np.ndarray] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    opset: int = 13

    @property
    def stands_for(self) -> str:
        name = self.operator.partition("(")[0].partition("<")[0]
        return "SiLU" if name == "Swish" else name

    def graph(self, **changed: Any) -> onnx.ModelProto:
        """The model of `text`; changed: other values of its constants."""
        return pattern_model(self.text, self.opset, {**self.numbers, **self.parameters, **changed})

    def node(self) -> onnx.ModelProto:
        """The model of `operator`."""
        return pattern_model(f"y = {self.operator}", 24 if self.stands_for == "SiLU" else 20, self.parameters)


def pattern_model(
    text: str, opset: int, constants: Mapping[str, Any], *, outputs: str = "float[N,4,6] y"
) -> onnx.ModelProto:
    header = f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g (float[N,4,6] x) => ({outputs})'
    model = onnx.parser.parse_model(f"{header} {{ {text} }}")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    words = set(re.findall(r"\w+", text))
    for name, value in ((name, value) for name, value in constants.items() if name in words):
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    return model


_NORM = {"two": 2.0}
_AFFINE = {"scale": SCALE, "bias": BIAS, "epsilon": 1e-3}
_MEANS = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two) v = ReduceMean<axes=[-1]>(p) e = Add(v, epsilon)"
_SQUARES = (
    "m = ReduceMean<axes=[2]>(x) p = Mul(x, x) s = ReduceMean<axes=[2]>(p) t = Mul(m, m) u = Sub(s, t)"  # a variance
)
_LAYER_NORM = "LayerNormalization<epsilon = 0.001>"

CASES = {
    "SiLU": Case(text="s = Sigmoid(x) y = Mul(x, s)", operator="Swish(x)"),
    "HardSwish of PyTorch, Paddle": Case(
        text="a = Add(x, three) c = Clip(a, zero, six) m = Mul(x, c) y = Div(m, six)",
        numbers={"three": 3.0, "zero": 0.0, "six": 6.0},
        operator="HardSwish(x)",
    ),
    "HardSwish of PyTorch, opset 13": Case(
        text="h = HardSigmoid<alpha = 0.16666667>(x) y = Mul(x, h)", operator="HardSwish(x)"
    ),
    "HardSwish of TensorFlow": Case(
        text="a = Add(x, three) r = Relu(a) c = Min(r, six) m = Mul(c, sixth) y = Mul(x, m)",
        numbers={"three": 3.0, "six": 6.0, "sixth": 1 / 6},
        operator="HardSwish(x)",
    ),
    "HardSwish of TensorFlow, Clip behind Relu": Case(
        text="a = Add(three, x) r = Relu(a) c = Clip(r, zero, six) m = Mul(x, c) y = Mul(m, sixth)",
        numbers={"three": 3.0, "six": 6.0, "sixth": 1 / 6},
        parameters={"zero": 0.0},  # any below: Relu is there
        operator="HardSwish(x)",
    ),
    "HardSwish, scaled first": Case(
        text="a = Mul(x, sixth) b = Add(a, half) c = Clip(b, zero, one) y = Mul(c, x)",
        numbers={"sixth": 1 / 6, "half": 0.5, "zero": 0.0, "one": 1.0},
        operator="HardSwish(x)",
    ),
    "HardSigmoid of PyTorch": Case(
        text="a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)",
        numbers={"three": 3.0, "zero": 0.0, "six": 6.0},
        operator="HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)",
    ),
    "HardSigmoid of TensorFlow": Case(
        text="a = Add(x, three) r = Relu(a) c = Min(r, six) y = Mul(c, sixth)",
        numbers={"three": 3.0, "six": 6.0, "sixth": 1 / 6},
        operator="HardSigmoid<alpha = 0.16666667, beta = 0.5>(x)",
    ),
    "HardSigmoid of Keras": Case(
        text="a = Mul(slope, x) b = Add(a, offset) y = Clip(b, zero, one)",
        numbers={"zero": 0.0, "one": 1.0},
        parameters={"slope": 0.2, "offset": 0.4},
        operator="HardSigmoid<alpha = 0.2, beta = 0.4>(x)",
    ),
    "PRelu of Keras": Case(
        text="r = Relu(x) n = Neg(x) q = Relu(n) s = Mul(slope, q) y = Sub(r, s)",
        parameters={"slope": SLOPE},
        operator="PRelu(x, slope)",
    ),
    "PRelu, one slope": Case(
        text="r = Relu(x) n = Mul(x, minus) q = Relu(n) s = Mul(q, minus_slope) y = Add(s, r)",
        numbers={"minus": -1.0},
        parameters={"minus_slope": -0.3, "slope": np.array([0.3])},
        operator="PRelu(x, slope)",
    ),
    "Gelu of PyTorch": Case(
        text="d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
        numbers={"root": 2**0.5, "one": 1.0, "half": 0.5},
        operator="Gelu(x)",
    ),
    "Gelu of TensorFlow": Case(
        text="d = Mul(x, rroot) e = Erf(d) a = Add(one, e) h = Mul(half, a) y = Mul(x, h)",
        numbers={"rroot": 0.5**0.5, "one": 1.0, "half": 0.5},
        operator="Gelu(x)",
    ),
    "Gelu of Paddle": Case(
        text="d = Div(x, root) e = Erf(d) a = Add(e, one) h = Mul(x, half) y = Mul(h, a)",
        numbers={"root": 1.41421, "one": 1.0, "half": 0.5},
        operator="Gelu(x)",
    ),
    "Gelu by Tanh of PyTorch": Case(
        text=(
            "p = Pow(x, cube) q = Mul(p, k) a = Add(x, q) b = Mul(a, root) t = Tanh(b) c = Add(t, one) "
            "h = Mul(x, half) y = Mul(h, c)"
        ),
        numbers={"cube": 3.0, "k": 0.044715, "root": ROOT, "one": 1.0, "half": 0.5},
        operator='Gelu<approximate = "tanh">(x)',
    ),
    "Gelu by Tanh of BERT": Case(
        text=(
            "s = Mul(x, x) p = Mul(s, x) q = Mul(k, p) a = Add(x, q) b = Mul(root, a) t = Tanh(b) c = Add(one, t) "
            "h = Mul(half, c) y = Mul(x, h)"
        ),
        numbers={"k": 0.044715, "root": 0.797885, "one": 1.0, "half": 0.5},
        operator='Gelu<approximate = "tanh">(x)',
    ),
    "Gelu by Tanh of Keras": Case(
        text=(
            "q = Mul(k, x) s = Mul(x, q) p = Mul(x, s) a = Add(x, p) b = Mul(root, a) t = Tanh(b) c = Add(ones, t) "
            "h = Mul(half, c) y = Mul(x, h)"
        ),
        numbers={"k": 0.044715, "root": ROOT, "ones": np.ones((1, 1, 1)), "half": 0.5},
        operator='Gelu<approximate = "tanh">(x)',
    ),
    "Gelu by Tanh, fast": Case(
        text=(
            "r = Mul(x, root) q = Mul(x, k) s = Mul(q, x) a = Add(s, one) b = Mul(r, a) t = Tanh(b) c = Add(t, one) "
            "h = Mul(x, half) y = Mul(h, c)"
        ),
        numbers={"k": 0.044715, "root": ROOT, "one": 1.0, "half": 0.5},
        operator='Gelu<approximate = "tanh">(x)',
    ),
    "LayerNormalization of PyTorch": Case(
        text=f"{_MEANS} q = Sqrt(e) n = Div(d, q) s = Mul(n, scale) y = Add(s, bias)",
        numbers=_NORM,
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization of PyTorch, opset 18": Case(
        text=(
            "m = ReduceMean(x, axes) d = Sub(x, m) p = Pow(d, two) v = ReduceMean(p, axes) e = Add(v, epsilon) "
            "q = Sqrt(e) n = Div(d, q) s = Mul(n, scale) y = Add(s, bias)"
        ),
        numbers=_NORM,
        parameters={**_AFFINE, "axes": np.array([2])},
        operator=f"{_LAYER_NORM}(x, scale, bias)",
        opset=18,
    ),
    "LayerNormalization over two axes": Case(
        text=f"{_MEANS} q = Sqrt(e) r = Reciprocal(q) n = Mul(d, r) s = Mul(wide, n) y = Add(wider, s)".replace(
            "axes=[-1]", "axes=[1, 2]"
        ),
        numbers=_NORM,
        parameters={"wide": WIDE_SCALE, "wider": WIDE_BIAS, "epsilon": 1e-3},
        operator="LayerNormalization<epsilon = 0.001, axis = 1>(x, wide, wider)",
    ),
    "LayerNormalization without bias": Case(
        text=f"{_MEANS} q = Sqrt(e) n = Div(scale, q) y = Mul(d, n)",
        numbers=_NORM,
        parameters={"scale": SCALE, "epsilon": 1e-3},
        operator=f"{_LAYER_NORM}(x, scale)",
    ),
    "LayerNormalization without scale": Case(
        text=f"{_MEANS} q = Pow(e, minus_half) n = Mul(q, d) y = Add(n, bias)",
        numbers={**_NORM, "minus_half": -0.5},
        parameters={"bias": BIAS, "epsilon": 1e-3, "ones": np.ones(6)},
        operator=f"{_LAYER_NORM}(x, ones, bias)",
    ),
    "LayerNormalization without either": Case(
        text=f"{_MEANS} q = Sqrt(e) y = Div(d, q)",
        numbers=_NORM,
        parameters={"epsilon": 1e-3, "ones": np.ones(6)},
        operator=f"{_LAYER_NORM}(x, ones)",
    ),
    "LayerNormalization of TensorFlow": Case(
        text=(
            "m = ReduceMean<axes=[2]>(x) d = Sub(x, m) p = Mul(d, d) v = ReduceMean<axes=[2]>(p) e = Add(v, epsilon) "
            "q = Sqrt(e) r = Reciprocal(q) g = Mul(r, scale) a = Mul(x, g) b = Mul(m, g) c = Sub(bias, b) y = Add(a, c)"
        ),
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization, scale of more axes": Case(
        text=f"{_MEANS} q = Sqrt(e) n = Div(d, q) s = Mul(n, tall) y = Add(s, taller)",
        numbers=_NORM,
        parameters={
            "tall": SCALE.reshape(1, 1, 6),
            "taller": BIAS.reshape(1, 6),
            "scale": SCALE,
            "bias": BIAS,
            "epsilon": 1e-3,
        },
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization of Flax": Case(
        text=(
            f"{_SQUARES} v = Max(zero, u) d = Sub(x, m) e = Add(v, epsilon) q = Sqrt(e) r = Reciprocal(q) "
            "g = Mul(r, scale) n = Mul(d, g) y = Add(n, bias)"
        ),
        numbers={"zero": 0.0},
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization of Flax, no bound of the variance": Case(
        text=(
            f"{_SQUARES} d = Sub(x, m) e = Add(u, epsilon) q = Sqrt(e) n = Div(d, q) g = Mul(n, scale) y = Add(g, bias)"
        ),
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization of TensorFlow, E[x^2] - E[x]^2": Case(
        text=(
            f"{_SQUARES} e = Add(u, epsilon) q = Sqrt(e) r = Reciprocal(q) g = Mul(r, scale) a = Mul(x, g) "
            "b = Mul(m, g) c = Sub(bias, b) y = Add(a, c)"
        ),
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
    "LayerNormalization of TensorFlow, a variance of at least 0": Case(
        text=(
            f"{_SQUARES} v = Relu(u) e = Add(v, epsilon) q = Sqrt(e) r = Reciprocal(q) g = Mul(r, scale) "
            "a = Mul(x, g) b = Mul(m, g) c = Sub(bias, b) y = Add(a, c)"
        ),
        parameters=_AFFINE,
        operator=f"{_LAYER_NORM}(x, scale, bias)",
    ),
}
