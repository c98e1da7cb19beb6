"""The opset of a model, raised for number formats that older Q/DQ do not have."""

from __future__ import annotations

import logging

import onnx
import onnx.version_converter
import onnxruntime

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
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # the exception says it all
    try:
        raised = onnx.version_converter.convert_version(model, opset)
        needed = onnx.helper.find_min_ir_version_for(raised.opset_import, ignore_unknown=True)
        raised.ir_version = max(raised.ir_version, needed)
        # Not all that the converter makes is valid: GroupNormalization of opset 18 keeps scales of a wrong shape.
        onnxruntime.InferenceSession(raised.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # neither the converter's exceptions nor onnxruntime's have a base of their own
        _LOG.warning("the model stays at opset %d, as it cannot be raised to %d: %s", opset_of(model), opset, error)
        return model
    return raised
