"""The opset of a model, raised for number formats that older Q/DQ do not have."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray

__all__ = ["opset_of", "raised_opset"]

_LOG = logging.getLogger(__name__)


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def raised_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in opset `opset` or its own newer one; as it is where onnx or onnxruntime cannot do that.

    Args:
        model: not changed.
    """
    if opset_of(model) >= opset:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, opset)
        needed = onnx.helper.find_min_ir_version_for(raised.opset_import, ignore_unknown=True)
        raised.ir_version = max(raised.ir_version, needed)
        _check_the_same(model, raised)
    except Exception as error:  # neither the converter's exceptions nor onnxruntime's have a base of their own
        _LOG.warning("the model stays at opset %d, as it cannot be raised to %d: %s", opset_of(model), opset, error)
        return model
    return raised


def _check_the_same(model: onnx.ModelProto, raised: onnx.ModelProto) -> None:
    """What the converter makes may be invalid or something else: scales of GroupNormalization keep a wrong shape.

    Raises:
        Exception: onnxruntime does not load or run the raised model, or it computes something else.
    """
    old, new = _session(model), _session(raised)
    feed = {value.name: _random(value) for value in old.get_inputs()}
    try:
        expected = old.run(None, feed)
    except Exception:  # lengths that are left open may not be any: then nothing can be compared
        return
    pairs = zip(new.run(None, feed), expected, strict=True)
    if not all(np.allclose(have, want, rtol=1e-3, atol=1e-3, equal_nan=True) for have, want in pairs):
        raise ValueError("onnx's converter changes what it computes")


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the exception says it all
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _random(value: onnxruntime.NodeArg) -> NDArray[np.generic]:
    """An input of one sample; 32 for other lengths that are left open."""
    open_lengths = (1, *(32,) * len(value.shape))
    shape = [
        length if isinstance(length, int) else other for length, other in zip(value.shape, open_lengths, strict=False)
    ]
    if value.type == "tensor(float)":
        return np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.zeros(shape, value.type.removeprefix("tensor(").removesuffix(")"))
