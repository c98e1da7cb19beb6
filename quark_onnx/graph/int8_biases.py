"""Biases of 8 bits, each with a scale of its own, as AMD's XInt8 has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType

from quark.onnx import _core
from quark.onnx.graph.editor import GraphEditor
from quark.onnx.quantization.config.spec import ScaleType

__all__ = ["int8_biases"]

_OPS_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm", "InstanceNormalization", "LayerNormalization"})


def int8_biases(graph: onnx.GraphProto, scales: ScaleType) -> dict[str, list[dict[str, Any]]]:
    """How to quantize each constant bias: entries of onnxruntime's option TensorQuantOverrides.

    The scale is the one of its kind with the least squared error of the bias.
    """
    editor, pool, found = GraphEditor(graph), _core.ThreadPool(1), {}
    for node in graph.node:
        bias = editor.constant(node, 2) if node.op_type in _OPS_WITH_BIAS else None
        if bias is None or not bias.size:
            continue
        ((scale,), (zero_point,)) = _core.weight_scale(
            np.ascontiguousarray(bias.reshape(1, -1)),
            qmin=-127, qmax=127, symmetric=True, per_channel=False, scale_type=scales.name, pool=pool,
        )  # fmt: skip
        found[node.input[2]] = [{"quant_type": QuantType.QInt8, "scale": scale, "zero_point": np.int8(zero_point)}]
    return found
