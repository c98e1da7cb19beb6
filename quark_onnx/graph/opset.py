"""The opset of a model, raised for operators and number formats that older ones do not have."""

from __future__ import annotations

import onnx
import onnx.version_converter

from quark.onnx.graph.old_operators import keep_old_resize, write_for_converter

__all__ = ["called_opset", "opset_of", "raised"]

_FIRST_MODERN = 13  # no operator of this opset or a newer one needs to be written for the converter


def opset_of(model: onnx.ModelProto, default: int = 1) -> int:
    """The version of ONNX's own operators; `default` where the model says none."""
    return min((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=default)


def raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of a model at a newer opset, by onnx's version converter.

    Raises:
        Exception: the converter cannot: RuntimeError, an error of its own, or the checker's.
    """
    given = model
    if opset_of(model) < _FIRST_MODERN:
        given = onnx.ModelProto()
        given.CopyFrom(model)
        write_for_converter(given.graph)
    result: onnx.ModelProto = onnx.version_converter.convert_version(given, opset)
    if opset_of(model) < 11:
        keep_old_resize(result.graph)
    result.graph.ClearField("output")  # the converter fixes free axes there
    result.graph.output.extend(model.graph.output)
    needed = onnx.helper.find_min_ir_version_for(result.opset_import, ignore_unknown=True)
    result.ir_version = max(model.ir_version, needed)
    return result


def called_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of a model that says another opset of its nodes, which stay: for operators that are the same in both."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for entry in result.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return result
