"""How many values go through tensors of a model."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import helper

from quark.onnx.graph.editor import GraphEditor
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine

__all__ = ["element_counts"]


def element_counts(
    model: onnx.ModelProto, tensors: Sequence[str], items: Sequence[Batch], engine: Engine
) -> dict[str, int]:
    """The number of elements of each tensor, over all items.

    Args:
        model: not changed.
        tensors: inputs may be among them.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """
    counting = onnx.ModelProto()
    counting.CopyFrom(model)
    editor = GraphEditor(counting.graph)
    sizes = {name: editor.fresh_name(f"{name}_size") for name in tensors}
    counting.graph.node.extend(helper.make_node("Size", [name], [size]) for name, size in sizes.items())
    counted = ExposedTensors(counting, list(sizes.values()), engine)
    found = [counted(item) for item in items]
    return {name: sum(int(values[size]) for values in found) for name, size in sizes.items()}
