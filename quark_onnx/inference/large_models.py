"""Models beyond the 2 GB that protobuf can serialize: their large tensors are put aside where that has to be done."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.checker import MAXIMUM_PROTOBUF

from quark.onnx.config.data_type import DATA_TYPES

__all__ = ["copy_fields", "digest_of", "is_large", "serialized_for", "transformed", "without_weights"]

_LIMIT = MAXIMUM_PROTOBUF - (64 << 20)  # of all tensors; the nodes need room too
_PACKED = frozenset(
    onnx.TensorProto.DataType.Value(kind.element_type) for kind in DATA_TYPES.values() if 0 < kind.bits < 8
)
_LARGE = 1 << 20  # bytes of a tensor that is put aside; what is smaller may hold shapes, axes, ...


def is_large(model: onnx.ModelProto) -> bool:
    """Whether a model must be taken apart to be serialized."""
    return sum(map(_size, model.graph.initializer)) >= _LIMIT


def _size(tensor: onnx.TensorProto) -> int:
    """The size in bytes; of types below 8 bits at least as many as they take."""
    count: int = math.prod(tensor.dims)
    return count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def transformed(model: onnx.ModelProto, transform: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """What a transformation that serializes makes of a model.

    Of a large model it sees the large tensors as inputs of the graph: it can neither read nor fold them.
    """
    if not is_large(model):
        return transform(model)
    shell, aside = _taken_apart(model)
    for tensor in aside:
        shell.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    result = transform(shell)
    names = {tensor.name for tensor in aside}
    inputs = [value for value in result.graph.input if value.name not in names]
    result.graph.ClearField("input")
    result.graph.input.extend(inputs)
    result.graph.initializer.extend(aside)
    return result


def serialized_for(
    options: ort.SessionOptions, model: onnx.ModelProto, *, aside: bool = True
) -> tuple[bytes, list[ort.OrtValue]]:
    """A model as an onnxruntime session takes it.

    Args:
        options: of the session; get the large tensors, which saves two copies of them.
        aside: False: they are among the bytes, unless the model is too large for that.

    Returns:
        The bytes, and what must be kept as long as the session is used.
    """
    if (not aside and not is_large(model)) or not any(map(_is_put_aside, model.graph.initializer)):
        return model.SerializeToString(), []
    shell, tensors = _taken_apart(model, _is_put_aside)
    for tensor in tensors:
        stub = shell.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        stub.data_location = onnx.TensorProto.EXTERNAL
        stub.external_data.add(key="location", value="in memory")
    values = list(map(_ort_value, tensors))
    options.add_external_initializers([tensor.name for tensor in tensors], values)
    return shell.SerializeToString(), values


def without_weights(model: onnx.ModelProto, largest: int = 1 << 10) -> onnx.ModelProto:
    """A copy in which initializers of more than `largest` bytes are inputs without a value."""
    shell, aside = _taken_apart(model, lambda tensor: _size(tensor) > min(largest, _LARGE - 1))
    inputs = {value.name for value in shell.graph.input}  # before IR version 4 initializers are inputs as well
    for tensor in aside:
        if tensor.name not in inputs:
            shell.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return shell


def digest_of(model: onnx.ModelProto) -> str:
    """A digest of a model, equal in every process."""
    shell, aside = _taken_apart(model)
    digest = hashlib.sha256(shell.SerializeToString(deterministic=True))
    for tensor in aside:
        digest.update(tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


def _ort_value(tensor: onnx.TensorProto) -> ort.OrtValue:
    array = numpy_helper.to_array(tensor)
    if tensor.data_type not in _PACKED:
        return ort.OrtValue.ortvalue_from_numpy(array)
    # onnxruntime wants the packed bytes, in an array of the tensor's shape.
    packed = np.frombuffer(numpy_helper.from_array(array).raw_data, np.int8)
    padded = np.zeros(array.shape, np.int8)
    padded.reshape(-1)[: packed.size] = packed
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(padded, tensor.data_type)


def _is_large(tensor: onnx.TensorProto) -> bool:
    return _size(tensor) >= _LARGE


def _is_put_aside(tensor: onnx.TensorProto) -> bool:
    """Whether it is large, and onnxruntime takes it as an array."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).kind
    return _is_large(tensor) and (kind in "biuf" or tensor.data_type in _PACKED)


def _taken_apart(
    model: onnx.ModelProto, apart: Callable[[onnx.TensorProto], bool] = _is_large
) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of a model without the initializers that are `apart`, and these, still the model's own."""
    shell = onnx.ModelProto()
    copy_fields(shell, model, but="graph")
    copy_fields(shell.graph, model.graph, but="initializer")
    shell.graph.initializer.extend(tensor for tensor in model.graph.initializer if not apart(tensor))
    return shell, list(filter(apart, model.graph.initializer))


def copy_fields(to: Any, source: Any, *, but: str) -> None:
    """Fields of a message, all but one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if hasattr(value, "MergeFrom"):
            getattr(to, field.name).MergeFrom(value)
        else:
            setattr(to, field.name, value)
