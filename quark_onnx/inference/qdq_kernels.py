"""Which opsets onnxruntime has kernels of QuantizeLinear and DequantizeLinear for."""

from __future__ import annotations

from functools import cache

import onnx
from onnx import TensorProto, helper

from quark.onnx.errors import ModelError
from quark.onnx.inference.sessions import Engine, session

__all__ = ["newest_qdq_opset"]

_OLDEST = 13


@cache
def newest_qdq_opset(opset: int) -> int:
    """The newest opset up to this one whose Q/DQ onnxruntime runs: onnx may know newer ones."""
    newest = min(opset, onnx.defs.onnx_opset_version())
    return next((version for version in range(newest, _OLDEST, -1) if _runs(version)), _OLDEST)


def _runs(opset: int) -> bool:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [1.0])
    graph = helper.make_graph(nodes, "qdq", value[:1], value[1:], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    try:
        session(model, Engine(1), optimise=False)
    except ModelError:
        return False
    return True
