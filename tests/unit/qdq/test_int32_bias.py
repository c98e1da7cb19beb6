"""The room that an int32 bias leaves, and what weight scale it needs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx.qdq.int32_bias import bias_limit, costs_little, scales_for_bias

INT32 = np.iinfo(np.int32)


@given(
    inputs=st.integers(1, 33000),
    x_zero=st.integers(0, 255),
    w_zero=st.integers(-127, 127),
    sign=st.sampled_from([-1, 1]),
)
def test_no_data_makes_the_sum_leave_int32(inputs: int, x_zero: int, w_zero: int, sign: int) -> None:
    x_reach, w_reach = max(x_zero, 255 - x_zero), max(127 - w_zero, w_zero + 127)
    limit = bias_limit(inputs, x_reach, w_reach)
    worst = inputs * x_reach * w_reach
    assert limit >= INT32.max // 2
    if worst <= INT32.max // 2:
        assert INT32.min < sign * (limit + worst) <= INT32.max
        assert limit + worst == INT32.max  # none of the room is lost


def test_what_has_no_integer_kernels_needs_no_room() -> None:
    assert bias_limit(10**9, 0, 32767) == INT32.max


@given(
    bias=st.lists(st.floats(-(2**60), 2**60, width=32), min_size=3, max_size=3),
    input_scale=st.floats(2**-60, 2**60, width=32),
    scale=st.floats(2**-60, 2**60, width=32),
    per_channel=st.booleans(),
)
def test_a_bias_fits_with_the_scales_for_it(
    bias: list[float], input_scale: float, scale: float, per_channel: bool
) -> None:
    limit = bias_limit(100, 255, 127)
    values = np.array(bias, np.float32)
    before = np.full(3 if per_channel else (), scale, np.float32)
    after = scales_for_bias(values, input_scale, before, limit)
    assert after.shape == before.shape
    assert (after >= before).all()
    product = np.float64(input_scale) * after.astype(np.float32).astype(np.float64)
    assert (np.abs(values) <= limit * product).all()
    assert (product >= np.finfo(np.float32).tiny).all()
    needless = (np.abs(values).astype(float) < 0.99 * limit * input_scale * scale) & (input_scale * scale > 1e-37)
    if needless.all():
        np.testing.assert_array_equal(after, before)


def test_the_error_of_the_weights_is_weighed_against_the_rounding_of_the_output() -> None:
    rows, scale = np.ones((2, 12), np.float32), np.float32([1 / 127, 1 / 127])
    assert costs_little(rows, scale, 2 * scale.astype(float), 1.0, 0.0)  # twice as large: always
    assert costs_little(rows, scale, 10 * scale.astype(float), 1.0, 0.0)  # of 12 that the weights make, 0.006
    larger = scale.astype(float) * [1, 20]
    error = 12 * (20 / 127) ** 2 / 12
    assert costs_little(rows, scale, larger, 1.0, float(np.sqrt(48 * error)) * 1.01)
    assert not costs_little(rows, scale, larger, 1.0, float(np.sqrt(48 * error)) * 0.99)
    assert not costs_little(rows, scale, larger, 1.0, 0.0)
    huge = scale.astype(float) * [1, 1e30]  # all of the weights are lost, and no more
    assert costs_little(rows, scale, huge, 1.0, float(np.sqrt(48 * 12)) * 1.01)
    assert not costs_little(rows, scale, huge, 1.0, float(np.sqrt(48 * 12)) * 0.99)
    assert not costs_little(rows, scale, scale.astype(float) * 1e45, 1.0, 1e9)  # no float32 is that large
