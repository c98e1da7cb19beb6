"""Layers for the gradient loops with every activation, on every kind of layer, with and without the output's grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from reference.fake_quant import affine_from_range
from reference.output_stage import Stage
from reference.training_cases import TrainingCase, conv_case, matrix_case


def as_float32(x: float) -> float:
    """The core keeps numbers of a stage in float32."""
    return float(np.float32(x))


SLOPE, ALPHA = as_float32(0.1), as_float32(0.2)
ELEMENTWISE = {
    "none": Stage(),
    "relu": Stage(activation="clip", a=0.0, b=np.inf),
    "clip": Stage(activation="clip", a=-1.25, b=2.0),
    "leaky_relu": Stage(activation="leaky_relu", a=SLOPE),
    "sigmoid": Stage(activation="sigmoid"),
    "tanh": Stage(activation="tanh"),
    "gelu": Stage(activation="gelu"),
    "gelu_tanh": Stage(activation="gelu_tanh"),
    "hard_sigmoid": Stage(activation="hard_sigmoid", a=ALPHA, b=0.5),
    "hard_swish": Stage(activation="hard_swish"),
    "silu": Stage(activation="silu"),
}
LAYERS = {
    "conv": conv_case(40, sizes=(5, 6), channels=2, outputs=4, kernel=(3, 2), pads=(1, 0, 1, 0)),
    "depthwise": conv_case(44, sizes=(5, 5), channels=1, outputs=1, groups=5, kernel=(3, 3), pads=(1, 1, 1, 1)),
    "gemm": matrix_case(42, samples=20),
    "matmul": matrix_case(43, samples=12, positions=6),
}
LAYERS = {name: case.scaled(2.0 ** -np.round(np.log2(case.y.std() / 2))) for name, case in LAYERS.items()}


def with_slopes(case: TrainingCase) -> TrainingCase:
    """The case with PRelu's slopes: an `a` of each output, one of them negative."""
    slopes = np.linspace(-0.2, 0.6, len(case.layer.weight), dtype=np.float32)
    shape = (-1,) if case.conv is None else (-1, *(1,) * len(case.conv.kernel))
    return replace(case, stage=Stage(activation="leaky_relu", slopes=slopes.reshape(shape)))


def quantized(case: TrainingCase, *, folded: bool = False) -> TrainingCase:
    """4 bits, and a range that some values lie outside of: rounding and clipping both matter."""
    stage = case.stage or Stage()
    values = stage.target(case.y.astype(np.float64))
    grid = affine_from_range(0.8 * float(values.min()), 0.8 * float(values.max()), 0, 15, symmetric=False)
    return replace(case, stage=replace(stage, folded=folded, grid=(*grid, 0, 15)))


def softmax_case(name: str, axis: int) -> TrainingCase:
    return replace(LAYERS[name], stage=Stage(activation="softmax", axis=axis))
