"""The opset of a model, raised for operators and number formats that older ones do not have."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
from numpy.typing import NDArray

from quark.onnx.graph.old_resize import keep_old_resize

__all__ = ["opset_of", "raised", "raised_and_checked", "raised_if_possible"]

_LOG = logging.getLogger(__name__)


def opset_of(model: onnx.ModelProto, default: int = 1) -> int:
    """The version of ONNX's own operators; `default` where the model says none."""
    return min((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=default)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of a model at a newer opset, by onnx's version converter.

    Raises:
        Exception: the converter cannot: RuntimeError, an error of its own, or the checker's.
    """
    result: onnx.ModelProto = onnx.version_converter.convert_version(model, opset)
    if opset_of(model) < 11:
        keep_old_resize(result.graph)
    result.graph.ClearField("output")  # the converter fixes free axes there
    result.graph.output.extend(model.graph.output)
    needed = onnx.helper.find_min_ir_version_for(result.opset_import, ignore_unknown=True)
    result.ir_version = max(model.ir_version, needed)
    return result


def raised_and_checked(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The same, if onnxruntime runs the result and it computes what the model does.

    What the converter makes may be invalid or something else: scales of GroupNormalization keep a wrong shape.

    Raises:
        Exception: of the converter, onnxruntime's, or ValueError.
    """
    result = raised(model, opset)
    old, new = _session(model), _session(result)
    feed = {value.name: _random(value) for value in old.get_inputs()}
    try:
        expected = old.run(None, feed)
    except Exception:  # lengths that are left open may not be any: then nothing can be compared
        return result
    pairs = zip(new.run(None, feed), expected, strict=True)
    if not all(np.allclose(have, want, rtol=1e-3, atol=1e-3, equal_nan=True) for have, want in pairs):
        raise ValueError("onnx's converter changes what it computes")
    return result


def raised_if_possible(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model in opset `opset` or its own newer one; as it is, with a warning, where that cannot be had.

    Args:
        model: not changed.
    """
    if opset_of(model) >= opset:
        return model
    try:
        return raised_and_checked(model, opset)
    except Exception as error:  # neither the converter's exceptions nor onnxruntime's have a base of their own
        _LOG.warning("the model stays at opset %d, as it cannot be raised to %d: %s", opset_of(model), opset, error)
        return model


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
