"""NaN and Inf in the weights and biases of a float model."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx.errors import ModelError
from quark.onnx.graph.editor import constant_tensors
from quark.onnx.layers.weight_layers import weight_layers

__all__ = ["check_weights", "with_finite_biases"]

_INSTEAD_OF_INF = np.float32(np.finfo(np.float32).max / 2)  # products that are added do not make it Inf


def check_weights(model: onnx.ModelProto) -> None:
    """Every weight is finite, and no bias is NaN.

    Raises:
        ModelError: names the tensor and its node.
    """
    constants = constant_tensors(model.graph)
    for layer in weight_layers(model):
        for role, name in (("weight", layer.weight), ("bias", layer.bias)):
            values = numpy_helper.to_array(constants[name]) if name else np.zeros(0, np.float32)
            what = _what(values, role)
            if what:
                raise ModelError(
                    f"the {role} {name!r} of {layer.op_type} {layer.node_name or layer.output!r} holds {what}: "
                    "such a model computes no numbers, export it again"
                )


def _what(values: NDArray[np.float32], role: str) -> str:
    bad = np.isnan(values) if role == "bias" else ~np.isfinite(values)
    kind = "NaN" if np.isnan(values).any() else "Inf"
    return f"{kind} ({int(bad.sum())} of {values.size} values)" if bad.any() else ""


def with_finite_biases(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """-Inf and Inf in biases become the half of the largest float32: a channel that is switched off stays so.

    Args:
        model: a prepared float model; not changed.

    Returns:
        The model, and a line for the report for each bias that was changed.
    """
    biases = {layer.bias: layer.node_name for layer in weight_layers(model) if layer.bias is not None}
    infinite = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in biases and np.isinf(numpy_helper.to_array(tensor)).any()
    }
    if not infinite:
        return model, ()
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in infinite:
            finite = np.clip(infinite[tensor.name], -_INSTEAD_OF_INF, _INSTEAD_OF_INF)
            tensor.CopyFrom(numpy_helper.from_array(finite, tensor.name))
    return result, tuple(
        f"bias {name!r} of node {biases[name]!r} holds Inf ({int(np.isinf(values).sum())} of {values.size} values): "
        f"{_INSTEAD_OF_INF:.2g} of its sign takes its place"
        for name, values in infinite.items()
    )
