"""Whether onnxruntime's kernels for 8-bit integers, as it takes them by default, saturate on this processor.

On x86-64 without VNNI it multiplies uint8 by int8 with an instruction that adds two products in 16 bits and cuts the
sum off at 32767. `session.x64quantprecision` = "1" makes it take another one, which is slower and exact.
"""

from __future__ import annotations

import functools

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

__all__ = ["SATURATION", "products_saturate"]

SATURATION = (
    "this processor has no VNNI, and onnxruntime's default kernels add products of 8-bit integers with saturation on "
    'it: set session.x64quantprecision to "1", as here, or the model computes something else than it defines'
)

_INPUTS = 64


@functools.cache
def products_saturate() -> bool:
    """Whether 255 * 127, added up, comes out as less."""
    codes = {
        "weight": np.full((_INPUTS, 16), 127, np.int8),
        "zero": np.array(0, np.uint8),
        "weight_zero": np.array(0, np.int8),
    }
    node = helper.make_node("MatMulInteger", ["x", "weight", "zero", "weight_zero"], ["y"])
    graph = helper.make_graph(
        [node],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, _INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [1, 16])],
        [numpy_helper.from_array(array, name) for name, array in codes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = opened.run(None, {"x": np.full((1, _INPUTS), 255, np.uint8)})
    return bool((found < 255 * 127 * _INPUTS).any())
