"""Scales and zero points of Q/DQ models that other tools made."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.model_files.quantizer_gate import check_quantizers

GOOD = {
    "xs": np.float32(0.1), "xz": np.uint8(3), "ws": np.array([0.1, 0.2], np.float32), "wz": np.zeros(2, np.int8),
    "w": np.ones((3, 2), np.int8),
}  # fmt: skip


def model(**changed: np.ndarray) -> onnx.ModelProto:
    """x through Q and DQ, times a weight with one scale per output."""
    made = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[N,3] x) => (float[N,2] y) {
            q = QuantizeLinear(x, xs, xz)
            d = DequantizeLinear(q, xs, xz)
            [weight] f = DequantizeLinear<axis=1>(w, ws, wz)
            y = MatMul(d, f)
        }"""
    )
    for name, value in (GOOD | changed).items():
        made.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return made


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    "changed",
    [
        {}, {"xs": floats(0.1)}, {"xz": np.array([3], np.uint8)}, {"ws": np.array([0.1, 0.2], np.float16)},
        {"ws": floats(1e-38, 1e38)}, {"ws": np.ones((3, 1, 2), np.float32), "wz": np.zeros((3, 1, 2), np.int8)},
    ],
    ids=["one", "an axis of 1", "zero point with an axis", "16 bits", "extremes", "blocks"],
)  # fmt: skip
def test_what_onnx_allows_passes(changed: dict[str, np.ndarray]) -> None:
    check_quantizers(model(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ws": floats(0.1, np.nan)}, "the scale 'ws' of DequantizeLinear 'weight' holds nan"),
        ({"ws": floats(0.1, np.inf)}, "the scale 'ws' .* holds inf"),
        ({"ws": floats(0.1, 0)}, "the scale 'ws' .* holds 0: a scale is a finite number above 0"),
        ({"xs": floats(-0.5)}, "the scale 'xs' of QuantizeLinear 'q' holds -0.5"),
        ({"ws": floats()}, "the scale 'ws' .* is empty"),
        ({"ws": np.array([1, 2])}, "the scale 'ws' .* is INT64"),
        ({"wz": np.zeros(3, np.int8)}, r"the zero point 'wz' .* has the dims \[3\], its scale \[2\]"),
        ({"wz": np.zeros(2, np.float32)}, "the zero point 'wz' .* is FLOAT, not of a quantized type"),
        ({"wz": np.zeros(2, np.uint8)}, "the zero point 'wz' .* is UINT8, and what it belongs to INT8"),
    ],
    ids=["NaN", "Inf", "zero", "negative", "empty", "integers", "another shape", "floats", "another type"],
)
def test_what_is_wrong_is_named(changed: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_quantizers(model(**changed))


def test_bodies_are_checked_too() -> None:
    outer = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[N,3] x, bool c) => (float[N,3] y) {
            y = If (c) <then_branch = t () => (float[N,3] a) { a = QuantizeLinear(x, s) },
                        else_branch = e () => (float[N,3] b) { b = Neg(x) }>
        }"""
    )
    outer.graph.initializer.append(numpy_helper.from_array(np.float32(0), "s"))
    with pytest.raises(ModelError, match="the scale 's' of QuantizeLinear 'a' holds 0"):
        check_quantizers(outer)
