"""Whether a tensor of a model is what its dims and its type say. Its values are not copied."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.system.memory_limit import MemoryLimit

__all__ = ["check_room", "check_sparse_tensor", "check_tensor", "check_type", "tensor_bytes"]

_TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}  # name -> bits
_COMPLEX = frozenset({onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128})
_MOST_BYTES = 2**62  # so that no size overflows, here or in what reads the model


def check_type(data_type: int, what: str) -> None:
    """Whether ONNX has such an element type.

    Raises:
        ModelError: it has not.
    """
    if data_type not in _TYPES:
        raise ModelError(f"{what} has the data type {data_type}, which ONNX {onnx.__version__} does not know")


def tensor_bytes(dims: Sequence[int], data_type: int, what: str) -> int:
    """The bytes of a tensor, packed ones as they are packed; of strings 0.

    Raises:
        ModelError: no tensor has such dims or such a type, or its size overflows.
    """
    check_type(data_type, what)
    if any(size < 0 for size in dims):
        raise ModelError(f"{what} has the negative dims {list(dims)}")
    if data_type == onnx.TensorProto.STRING:
        return 0
    bits = _PACKED.get(onnx.TensorProto.DataType.Name(data_type))
    if bits is None:
        bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    if bits * math.prod(size for size in dims if size) > 8 * _MOST_BYTES:  # NumPy multiplies without the zeros, too
        raise ModelError(f"{what} has the dims {list(dims)}: no memory holds as much")
    return -(-bits * math.prod(dims) // 8)


def check_tensor(tensor: onnx.TensorProto, what: str) -> None:
    """Whether a tensor holds as much data as its dims say, in a place that goes with its type.

    Args:
        what: the tensor, for messages.

    Raises:
        ModelError: it does not.
    """
    size = tensor_bytes(tensor.dims, tensor.data_type, what)
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which nothing reads")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise ModelError(f"{what} keeps its data in a file that is not loaded: pass the model's path instead")
    if tensor.HasField("raw_data"):
        if tensor.data_type == onnx.TensorProto.STRING:
            raise ModelError(f"{what} holds strings as raw data")
        _compare(len(tensor.raw_data), size, "bytes", tensor, what)
        return
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    count = math.prod(tensor.dims)
    if onnx.TensorProto.DataType.Name(tensor.data_type) in _PACKED:
        count = size  # an entry is a byte
    elif tensor.data_type in _COMPLEX:
        count *= 2
    _compare(len(getattr(tensor, field)), count, f"entries of {field}", tensor, what)


def _compare(have: int, wanted: int, unit: str, tensor: onnx.TensorProto, what: str) -> None:
    if have == wanted:
        return
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    cut = "is cut short" if have < wanted else "holds too much"
    raise ModelError(f"{what} {cut}: {kind} of dims {list(tensor.dims)} has {have} of {wanted} {unit}")


def check_sparse_tensor(tensor: onnx.SparseTensorProto, what: str) -> None:
    """Whether the indices of a sparse tensor lie in it, and there is memory for it as a dense one.

    Raises:
        ModelError: they do not, or there is not.
    """
    values, indices, dims = tensor.values, tensor.indices, list(tensor.dims)
    check_tensor(values, f"{what}: its values")
    check_tensor(indices, f"{what}: its indices")
    size = tensor_bytes(dims, values.data_type, what)
    check_room(size, f"{what}, dense,")
    stored = math.prod(values.dims)
    if len(values.dims) != 1 or not dims:
        raise ModelError(f"{what} has values of dims {list(values.dims)} for dims {dims}: give one axis of values")
    if indices.data_type != onnx.TensorProto.INT64:
        raise ModelError(f"{what} has indices that are no INT64")
    if list(indices.dims) not in ([stored], [stored, len(dims)]):
        raise ModelError(f"{what} has indices of dims {list(indices.dims)} for {stored} values of dims {dims}")
    given = numpy_helper.to_array(indices)
    limit = math.prod(dims) if given.ndim == 1 else dims
    if not ((given >= 0) & (given < limit)).all():
        raise ModelError(f"{what} has indices that are negative or lie outside of its dims {dims}")


def check_room(size: int, what: str) -> None:
    """Whether so many bytes can be had.

    Raises:
        ModelError: they cannot.
    """
    if size < 1 << 24:  # not worth a look
        return
    free = MemoryLimit().free()
    if size > free:
        raise ModelError(f"{what} takes {size / 2**30:.3g} GiB: {free / 2**30:.3g} GiB of memory are left")
