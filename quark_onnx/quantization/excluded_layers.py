"""The layers of a model that another tool quantized that a QConfig excludes."""

from __future__ import annotations

import onnx

from quark.onnx.config.qconfig import QConfig
from quark.onnx.quantization.node_scope import NodeScope

__all__ = ["excluded_outputs"]


def excluded_outputs(config: QConfig, model: onnx.ModelProto, original: onnx.ModelProto) -> frozenset[str]:
    """What the excluded nodes make. Tools that quantize rename nodes rather than tensors.

    Args:
        model: the float model, prepared or not.
        original: as it was given, whose nodes the configuration may name too.

    Raises:
        ConfigError: the configuration names a node or an operator that there is not.
    """
    excluded = NodeScope(config, model, original).excluded
    return frozenset(name for node in model.graph.node if node.name in excluded for name in node.output if name)
