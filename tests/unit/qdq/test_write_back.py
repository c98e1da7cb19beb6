"""Integers written into a model: their values change, nothing else does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from small_models import build

from quark.onnx.qdq.write_back import write_integers

NARROW = [ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4]
TYPES = [np.int8, np.uint8, np.int16, np.uint16, np.int32, *NARROW]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (5, 1, 3, 3)])
def test_type_name_and_shape_stay(dtype: type, shape: tuple[int, ...]):
    info = ml_dtypes.iinfo(dtype)
    tensor = numpy_helper.from_array(np.full(shape, 1, dtype), "weight")
    values = np.random.default_rng(0).integers(info.min, info.max, shape, np.int64, endpoint=True)
    write_integers(tensor, values.astype(np.int32).reshape(-1))
    written = numpy_helper.to_array(tensor)
    assert (tensor.name, written.dtype, written.shape) == ("weight", dtype, shape)
    np.testing.assert_array_equal(written, values)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_ends_of_the_type_fit_and_what_is_beyond_does_not(dtype: type):
    info = ml_dtypes.iinfo(dtype)
    tensor = numpy_helper.from_array(np.zeros(2, dtype), "weight")
    write_integers(tensor, np.array([info.min, info.max], np.int32))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int64), [info.min, info.max])
    for beyond in (info.min - 1, info.max + 1):
        if dtype is not np.int32:
            with pytest.raises(ValueError, match="values outside"):
                write_integers(tensor, np.array([0, beyond], np.int32))


def packed(values: np.ndarray, bits: int) -> bytes:
    """As ONNX stores narrow types: the first value in the lowest bits of the first byte."""
    per_byte = 8 // bits
    padded = np.concatenate([values, np.zeros(-len(values) % per_byte, values.dtype)]) & ((1 << bits) - 1)
    shifts = bits * np.arange(per_byte)
    return (padded.reshape(-1, per_byte) << shifts).sum(axis=1).astype(np.uint8).tobytes()


@given(st.data(), st.sampled_from(NARROW), st.integers(0, 21))
def test_narrow_types_are_packed(data: st.DataObject, dtype: type, count: int):
    """Any count: the last byte may not be full."""
    info = ml_dtypes.iinfo(dtype)
    numbers = st.integers(int(info.min), int(info.max))
    values = np.array(data.draw(st.lists(numbers, min_size=count, max_size=count)), np.int32)
    tensor = numpy_helper.from_array(np.zeros(count, dtype), "weight")
    write_integers(tensor, values)
    assert tensor.raw_data == packed(values, info.bits)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int32), values)


def test_a_transposed_view_is_written_in_its_own_order():
    tensor = numpy_helper.from_array(np.zeros((3, 2), np.int8), "weight")
    rows = np.arange(6, dtype=np.int32).reshape(2, 3)
    write_integers(tensor, rows.T)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), rows.T)


def test_values_stored_in_typed_fields_are_replaced():
    """Not every tool writes raw_data."""
    tensor = onnx.helper.make_tensor("weight", onnx.TensorProto.INT8, [3], [1, 2, 3])
    write_integers(tensor, np.array([4, 5, 6], np.int32))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), [4, 5, 6])


def test_the_model_around_it_stays():
    model = build(
        "(float[N,2] x) => (float[N,2] y) { r = DequantizeLinear(w, s) y = MatMul(x, r) }",
        w=np.ones((2, 2), np.int8),
        s=0.5,
    )
    before = onnx.ModelProto()
    before.CopyFrom(model)
    write_integers(model.graph.initializer[0], np.array([1, 1, 1, 1], np.int32))
    assert model == before
    write_integers(model.graph.initializer[0], np.array([1, 1, 1, 2], np.int32))
    assert model != before
    before.graph.initializer[0].CopyFrom(model.graph.initializer[0])
    assert model == before


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], r"weight: 2 values for shape \(3,\)"),
        ([1, 2, 3, 4], "4 values"),
        ([0, 0, 128], "weight: values outside int8"),
        ([-129, 0, 0], "values outside int8"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_tensor(values: list[int], message: str):
    tensor = numpy_helper.from_array(np.array([7, 8, 9], np.int8), "weight")
    with pytest.raises(ValueError, match=message):
        write_integers(tensor, np.array(values, np.int32))
    np.testing.assert_array_equal(numpy_helper.to_array(tensor), [7, 8, 9])
