"""Put finetuned integers into the quantized model: the only change that finetuning makes to it."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

__all__ = ["write_integers"]


def write_integers(initializer: onnx.TensorProto, values: NDArray[np.int32]) -> None:
    """Replace the values of an integer initializer; its type and shape stay.

    Args:
        values: as many as the initializer holds, within its type's range.

    Raises:
        ValueError: the count or a value does not fit: a defect of ours, never of the data.
    """
    dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
    info = np.iinfo(dtype)
    if values.size != np.prod(initializer.dims, dtype=np.int64):
        raise ValueError(f"{initializer.name}: {values.size} values for shape {tuple(initializer.dims)}")
    if values.size and (values.min() < info.min or values.max() > info.max):
        raise ValueError(f"{initializer.name}: values outside {dtype}")
    tensor = onnx.numpy_helper.from_array(values.astype(dtype).reshape(tuple(initializer.dims)), initializer.name)
    initializer.CopyFrom(tensor)
