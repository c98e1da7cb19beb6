"""Q/DQ models with weights of 3 and 2 bits, which the package tunes (`finetune()`) but does not make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from quark.onnx import _core
from quark.onnx.preparation.prepare import prepare

_TWO_BITS_OPSET = 25
Scales = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def three_bit_like(model: onnx.ModelProto, int4: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of 7 levels, -3 to 3, in int4. Scales are those of the largest weight of each channel: with smaller ones
    AdaRound's floor and ceil of the largest weights would be further levels, for which int4 has room."""
    return _narrowed(model, int4, TensorProto.INT4, lambda rows: np.abs(rows).max(axis=1) / np.float32(3), -3, 3)


def two_bits(model: onnx.ModelProto, int4: onnx.ModelProto) -> onnx.ModelProto:
    """Weights of int2, -2 to 1 (opset 25), whose scales have the least squared error per channel. onnxruntime 1.32 runs
    it as defined only where it does not optimise."""
    pool = _core.ThreadPool(1)

    def scales(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return _core.weight_scale(
            rows, qmin=-2, qmax=1, symmetric=True, per_channel=True, scale_type="Float32", pool=pool
        )[0]

    result = _narrowed(model, int4, TensorProto.INT2, scales, -2, 1)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", _TWO_BITS_OPSET))
    result.ir_version = helper.find_min_ir_version_for(result.opset_import)
    return result


def _narrowed(
    model: onnx.ModelProto, int4: onnx.ModelProto, kind: int, scales: Scales, lowest: int, highest: int
) -> onnx.ModelProto:
    """int4: the model quantized with symmetric Int4 weights per channel; not changed."""
    floats = {t.name: numpy_helper.to_array(t) for t in prepare(model).graph.initializer}
    result = onnx.ModelProto()
    result.CopyFrom(int4)
    constants = {t.name: t for t in result.graph.initializer}
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for node in result.graph.node:
        weight = constants.get(node.input[0])
        if node.op_type != "DequantizeLinear" or weight is None or weight.data_type != TensorProto.INT4:
            continue
        axis = next(item.i for item in node.attribute if item.name == "axis")
        rows = np.moveaxis(floats[weight.name.removesuffix("_quantized")], axis, 0)
        scale = scales(np.ascontiguousarray(rows.reshape(len(rows), -1)))
        steps = np.rint(rows / scale.reshape(-1, *(1,) * (rows.ndim - 1)))
        integers = np.moveaxis(np.clip(steps, lowest, highest).astype(np.int8), 0, axis)
        values = (integers.astype(dtype), scale, np.zeros(len(rows), np.int8).astype(dtype))
        for name, value in zip(node.input, values, strict=True):
            constants[name].CopyFrom(numpy_helper.from_array(value, name))
    return result
