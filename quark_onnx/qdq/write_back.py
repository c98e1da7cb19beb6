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
    if values.size != np.prod(initializer.dims, dtype=np.int64):
        raise ValueError(f"{initializer.name}: {values.size} values for shape {tuple(initializer.dims)}")
    narrow = values.astype(dtype)  # wraps around; of 4 and 2 bits too, which NumPy has from ml_dtypes
    if not np.array_equal(narrow.astype(np.int32), values):
        raise ValueError(f"{initializer.name}: values outside {dtype}")
    tensor = onnx.numpy_helper.from_array(narrow.reshape(tuple(initializer.dims)), initializer.name)
    initializer.CopyFrom(tensor)
