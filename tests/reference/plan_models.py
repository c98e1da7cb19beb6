"""One Gemm, float and quantized by hand, in text form: the plan for any change of it."""

from __future__ import annotations

import re

import numpy as np
import onnx
from small_models import build

from quark.onnx.operators.table import OPERATORS
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.types import Plan

W = np.array([[1.0, -2, 3, 4], [5, 6, -7, 8], [9, 10, 11, 127]])  # (inputs, outputs); on the grid of scale 1
B = np.array([1.0, 2, 3, 4])

FLOAT = "(float[N,3] x) => (float[N,4] y) { [layer] y = Gemm(x, w, b) }"
QUANTIZED = """(float[N,3] x) => (float[N,4] y) {
    x_q = QuantizeLinear(x, x_scale, x_zero)
    x_real = DequantizeLinear(x_q, x_scale, x_zero)
    w_real = DequantizeLinear(w_quantized, w_scale)
    b_real = DequantizeLinear(b_quantized, b_scale)
    [layer] y = Gemm(x_real, w_real, b_real)
}"""
CONSTANTS = {
    "x_scale": 0.25,
    "x_zero": np.uint8(7),
    "w_scale": 1.0,
    "w_quantized": W.astype(np.int8),
    "b_scale": 0.25,
    "b_quantized": (4 * B).astype(np.int32),
}


def plan_of(quantized: str = QUANTIZED, float_text: str = FLOAT, **options: object) -> Plan:
    """The plan for `models_of` the same arguments."""
    return build_plan(*models_of(quantized, float_text, **options), tuple(OPERATORS))


def models_of(
    quantized: str = QUANTIZED,
    float_text: str = FLOAT,
    *,
    float_constants: dict[str, object] | None = None,
    opset: int = 17,
    **changes: object,
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A float and a quantized model in text form; constants that a text does not name are left out."""

    def model(text: str, constants: dict[str, object]) -> onnx.ModelProto:
        names = set(re.findall(r"\w+", text)) - set(re.findall(r"(\w+) =", text))
        used = {name: value for name, value in constants.items() if name in names}
        return build(text, opset=opset, **used)

    float_model = model(float_text, {"w": W, "b": B, **(float_constants or {})})
    return float_model, model(quantized, {**CONSTANTS, **changes})
