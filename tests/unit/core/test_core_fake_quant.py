"""Quantize and dequantize against ONNX's operators; scale and zero point against onnxruntime.quantization."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.reference import ReferenceEvaluator
from onnxruntime.quantization.quant_utils import compute_scale_zp
from reference.fake_quant import affine_from_range, fake_quant
from small_models import build

from quark.onnx import _core

GRIDS = {"uint8": (0, 255), "int8": (-128, 127)}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_is_quantize_linear_then_dequantize_linear(dtype: str):
    qmin, qmax = GRIDS[dtype]
    model = build(
        f"""(float[N] x, float s, {dtype} z) => (float[N] y) {{
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }}""",
        opset=19,
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    evaluator = ReferenceEvaluator(model)

    @settings(max_examples=60, deadline=None)
    @given(
        arrays(np.float32, st.integers(1, 70), elements=st.floats(-1024, 1024, width=32)),
        st.floats(2**-20, 2**10),
        st.integers(qmin, qmax),
    )
    def check(x: np.ndarray, scale: float, zero_point: int) -> None:
        steps = np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)
        x = np.concatenate([x, steps * np.float32(scale)])  # ties, beyond both ends
        y = _core.fake_quant(x, scale, zero_point, qmin, qmax)
        feeds = {"x": x, "s": np.array(scale, np.float32), "z": np.array(zero_point, dtype)}
        np.testing.assert_array_equal(y, session.run(None, feeds)[0])
        np.testing.assert_array_equal(y, evaluator.run(None, feeds)[0])
        np.testing.assert_array_equal(y, fake_quant(x, scale, zero_point, qmin, qmax))

    check()


def test_keeps_the_shape_and_saturates():
    x = np.array([[-np.inf, -1e38, 0.0], [1e38, np.inf, 0.26]], np.float32)
    y = _core.fake_quant(x, 0.5, 3, 0, 255)
    np.testing.assert_array_equal(y, np.float32([[-1.5, -1.5, 0], [126, 126, 0.5]]))


@settings(max_examples=100, deadline=None)
@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([("uint8", 0, 255), ("int8", -128, 127), ("int8", -127, 127)]),
    st.booleans(),
)
@example(0.0, 0.0, ("uint8", 0, 255), True)
@example(0.0, 1e-44, ("int8", -128, 127), False)
@example(1.0, 2.0, ("uint8", 0, 255), False)
def test_affine_is_that_of_onnxruntime(a: float, b: float, grid: tuple[str, int, int], symmetric: bool):
    dtype, qmin, qmax = grid
    low, high = min(a, b), max(a, b)
    found = _core.affine_from_range(low, high, qmin, qmax, symmetric)
    assert found == affine_from_range(low, high, qmin, qmax, symmetric=symmetric)
    zero_point, scale = compute_scale_zp(
        np.float64(low), np.float64(high), np.array(qmin, dtype), np.array(qmax, dtype), symmetric=symmetric
    )
    if found != (1.0, 0):  # an empty range, where any scale will do
        assert found == (float(np.float32(scale)), int(zero_point))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1e6, 1e6, width=32),
    st.floats(-1e6, 1e6, width=32),
    st.sampled_from([(0, 255), (-128, 127), (-127, 127)]),
    st.booleans(),
    st.sampled_from(["PowerOf2", "Int16"]),
)
@example(-1.0, 127 / 128, (-127, 127), True, "PowerOf2")
@example(0.0, 255 / 256, (0, 255), False, "PowerOf2")
def test_a_scale_is_the_next_larger_one_of_its_kind(
    a: float, b: float, grid: tuple[int, int], symmetric: bool, scale_type: str
):
    low, high = min(a, b), max(a, b)
    found = _core.affine_from_range(low, high, *grid, symmetric, scale_type)
    assert found == affine_from_range(low, high, *grid, symmetric=symmetric, scale_type=scale_type)
    assert grid[0] <= found[1] <= grid[1]


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-1e6, 0, width=32),
    st.floats(0, 1e6, width=32),
    st.booleans(),
    st.sampled_from(["Float32", "PowerOf2", "Int16"]),
)
def test_a_range_is_covered_and_zero_is_exact(low: float, high: float, symmetric: bool, scale_type: str):
    scale, zero_point = _core.affine_from_range(low, high, 0, 255, symmetric, scale_type)
    ends = np.array([low, 0.0, high], np.float32)
    y = _core.fake_quant(ends, scale, zero_point, 0, 255)
    assert y[1] == 0
    assert (np.abs(y - ends) <= scale * (1 + 1e-6)).all()
