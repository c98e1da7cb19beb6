"""Small networks with odd weights, and odd data for them: what real models have now and then, exaggerated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

__all__ = ["DATA", "NETWORKS", "WEIGHTS", "odd_data", "odd_model"]

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
_Shapes = Mapping[str, tuple[int, ...]]  # of weights; a bias has one axis

_MLP = """(float[N,16] x) => (float[N,8] y) {
    [a] a_y = Gemm<transB=1>(x, a_w, a_b) a_r = Relu(a_y)
    [b] b_y = Gemm<transB=1>(a_r, b_w, b_b) b_r = Relu(b_y)
    [c] y = Gemm<transB=1>(b_r, c_w, c_b) }"""
_CNN = """(float[N,3,8,8] x) => (float[N,6] y) {
    [a] a_y = Conv<pads=[1,1,1,1]>(x, a_w, a_b) a_r = Relu(a_y)
    [b] b_y = Conv<strides=[2,2]>(a_r, b_w, b_b) b_r = Relu(b_y)
    pooled = GlobalAveragePool(b_r) flat = Flatten(pooled)
    [c] y = Gemm<transB=1>(flat, c_w, c_b) }"""
_SEPARABLE = """(float[N,4,8,8] x) => (float[N,8,6,6] y) {
    [a] a_y = Conv(x, a_w, a_b) a_r = Clip(a_y, zero, six)
    [b] b_y = Conv<group=16>(a_r, b_w, b_b) b_r = Clip(b_y, zero, six)
    [c] y = Conv(b_r, c_w, c_b) }"""
_RESIDUAL = """(float[N,8,6,6] x) => (float[N,8,6,6] y) {
    [a] a_y = Conv<pads=[1,1,1,1]>(x, a_w, a_b) a_r = Relu(a_y)
    [b] b_y = Conv<pads=[1,1,1,1]>(a_r, b_w, b_b) sum = Add(b_y, x) sum_r = Relu(sum)
    [c] y = Conv<pads=[1,1,1,1]>(sum_r, c_w, c_b) }"""
_SEQUENCE = """(float[N,6,16] x) => (float[N,6,4] y) {
    [a] a_y = MatMul(x, a_w) a_s = Add(a_y, a_b) a_r = Tanh(a_s)
    [b] b_y = MatMul(a_r, b_w) b_s = Add(b_y, b_b) b_r = Sigmoid(b_s)
    [c] y = MatMul(b_r, c_w) }"""

_TEXTS: dict[str, tuple[str, _Shapes]] = {
    "mlp": (_MLP, {"a_w": (32, 16), "a_b": (32,), "b_w": (32, 32), "b_b": (32,), "c_w": (8, 32), "c_b": (8,)}),
    "cnn": (_CNN, {"a_w": (12, 3, 3, 3), "a_b": (12,), "b_w": (16, 12, 3, 3), "b_b": (16,), "c_w": (6, 16),
                   "c_b": (6,)}),
    "separable": (_SEPARABLE, {"a_w": (16, 4, 1, 1), "a_b": (16,), "b_w": (16, 1, 3, 3), "b_b": (16,),
                               "c_w": (8, 16, 1, 1), "c_b": (8,)}),
    "residual": (_RESIDUAL, {"a_w": (8, 8, 3, 3), "a_b": (8,), "b_w": (8, 8, 3, 3), "b_b": (8,), "c_w": (8, 8, 3, 3),
                             "c_b": (8,)}),
    "sequence": (_SEQUENCE, {"a_w": (16, 24), "a_b": (24,), "b_w": (24, 24), "b_b": (24,), "c_w": (24, 4)}),
}  # fmt: skip
NETWORKS = tuple(_TEXTS)


def odd_model(network: str, weights: str, seed: int) -> onnx.ModelProto:
    """One of NETWORKS with one of WEIGHTS, in the middle layer where that is about one layer."""
    text, shapes = _TEXTS[network]
    random = np.random.default_rng(seed)
    constants = {name: _usual(shape, random, in_first="MatMul" in text) for name, shape in shapes.items()}
    axis = 1 if "MatMul" in text else 0  # of outputs
    WEIGHTS[weights](constants, axis, random)
    if "Clip" in text:
        constants |= {"zero": np.float64(0), "six": np.float64(6)}
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    with np.errstate(under="ignore"):
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()
        )
    return model


def odd_data(data: str, model: onnx.ModelProto, count: int, seed: int) -> dict[str, Floats]:
    """Samples of one of DATA for a model; another seed gives others of the same distribution."""
    (value,) = model.graph.input
    shape = tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim[1:])
    with np.errstate(under="ignore"):
        return {value.name: DATA[data](shape, count, np.random.default_rng(seed)).astype(np.float32)}


def _usual(shape: tuple[int, ...], random: np.random.Generator, *, in_first: bool) -> Doubles:
    if len(shape) == 1:
        return 0.2 * random.standard_normal(shape)
    inputs = shape[0] if in_first else int(np.prod(shape[1:]))
    gains = np.exp2(random.uniform(-2, 2, shape[1] if in_first else shape[0]))
    weight = random.standard_normal(shape) * np.sqrt(2 / inputs)
    return weight * (gains if in_first else gains.reshape(-1, *(1,) * (len(shape) - 1)))


# ---- weights: a change in place; `b` is the middle layer -------------------------------------------------------

_Change = Callable[[dict[str, Any], int, np.random.Generator], None]


def _first(weight: Doubles, axis: int, part: int) -> Doubles:
    """A view of the first 1/part of the channels along an axis."""
    view: Doubles = np.moveaxis(weight, axis, 0)[: max(1, weight.shape[axis] // part)]
    return view


def _dead_outputs(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:
    _first(c["a_w"], axis, 3)[...] = 0
    c["a_b"][: len(c["a_b"]) // 3] = 0


def _off_outputs(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
    c["a_b"][: len(c["a_b"]) // 3] = -1e6


def _dead_inputs(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:
    weight = c["c_w"]  # the middle layer of a separable network has one input for each output
    _first(weight, 1 - axis, 3)[...] = 0


def _all_equal(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
    c["b_w"][...] = 0.1


def _all_zero(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
    c["b_w"][...] = 0


def _integers(c: dict[str, Any], axis: int, random: np.random.Generator) -> None:  # noqa: ARG001
    for name, value in c.items():
        if name.endswith("_w"):
            value[...] = random.integers(-127, 128, value.shape) / 256


def _one_sided(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
    for name in ("a_w", "b_w"):
        c[name][...] = np.abs(c[name])


def _sparse(c: dict[str, Any], axis: int, random: np.random.Generator) -> None:  # noqa: ARG001
    for name, value in c.items():
        if name.endswith("_w"):
            value *= random.random(value.shape) < 0.1


def _outlier(factor: float) -> _Change:
    def change(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
        c["b_w"].flat[1] = factor

    return change


def _scaled(factor: float) -> _Change:
    def change(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
        c["b_w"] *= factor

    return change


def _bias(value: float) -> _Change:
    def change(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:  # noqa: ARG001
        c["b_b"][0] = value

    return change


def _as_it_is(c: dict[str, Any], axis: int, _: np.random.Generator) -> None:
    """The weights are usual ones."""


WEIGHTS: dict[str, _Change] = {
    "usual": _as_it_is,
    "dead outputs": _dead_outputs,
    "outputs that are off": _off_outputs,
    "dead inputs": _dead_inputs,
    "all equal": _all_equal,
    "all zero": _all_zero,
    "integers": _integers,
    "one-sided": _one_sided,
    "sparse": _sparse,
    "outlier 1e3": _outlier(1e3),
    "outlier 1e6": _outlier(1e6),
    "times 1e-20": _scaled(1e-20),
    "denormal": _scaled(1e-40),
    "times 1e8": _scaled(1e8),
    "bias 1e4": _bias(1e4),
    "bias -1e6": _bias(-1e6),
    "bias 1e-30": _bias(1e-30),
}

# ---- data: (samples, *shape) -----------------------------------------------------------------------------------

_Draw = Callable[[tuple[int, ...], int, np.random.Generator], Doubles]


def _smooth(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:
    """Neighbours along the last axes are alike, and samples differ in contrast, as images and signals do."""
    x = random.standard_normal((count, *shape))
    for axis in range(2, x.ndim):
        x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
    contrast = random.uniform(0.5, 1.5, (count, *(1,) * len(shape)))
    return contrast * x / x.std()


def _constant(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:  # noqa: ARG001
    return np.full((count, *shape), 0.7)


def _offset(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:
    return 1000 + _smooth(shape, count, random)


def _outlying(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:
    """Every fortieth sample is a thousand times as large."""
    large = np.where(random.random(count) < 1 / 40, 1e3, 1.0)
    return _smooth(shape, count, random) * large.reshape(-1, *(1,) * len(shape))


def _mostly_zero(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:
    return _smooth(shape, count, random) * (random.random((count, *shape)) < 0.02)


def _dead_channels(shape: tuple[int, ...], count: int, random: np.random.Generator) -> Doubles:
    x = _smooth(shape, count, random)
    x[..., : shape[-1] // 2] = 0.0
    return x


def _times(factor: float) -> _Draw:
    return lambda shape, count, random: factor * _smooth(shape, count, random)


DATA: dict[str, _Draw] = {
    "usual": _smooth,
    "constant": _constant,
    "offset 1000": _offset,
    "outlying samples": _outlying,
    "mostly zero": _mostly_zero,
    "dead channels": _dead_channels,
    "times 1e-20": _times(1e-20),
    "times 1e10": _times(1e10),
}
