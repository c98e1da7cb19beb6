"""Inner tensors as onnxruntime holds them: between convolutions in blocks of channels (its NCHWc layout).

To hand out such a tensor in its own order onnxruntime rearranges a copy. Statistics of values do without the order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from pathlib import Path

import onnx
import onnxruntime as ort

from quark.onnx.errors import ModelError
from quark.onnx.inference.large_models import is_large
from quark.onnx.inference.sessions import Engine, session

__all__ = ["session_in_blocks"]

_LOG = logging.getLogger(__name__)
_DOMAIN = "com.microsoft.nchwc"


def session_in_blocks(
    model: onnx.ModelProto, any_order: Collection[str], engine: Engine
) -> tuple[ort.InferenceSession, list[str]] | None:
    """A session of a model, and what to ask it for instead of each output.

    Args:
        any_order: outputs instead of which a tensor with the same values in another order will do.

    Returns:
        None where onnxruntime holds none of them in blocks.
    """
    has_blocks = engine.device == "cpu" and any(node.op_type == "Conv" for node in model.graph.node)
    if not any_order or not has_blocks or is_large(model) or not hasattr(os, "memfd_create"):
        return None
    try:
        optimised = _optimised(model, engine)
        held = _held_in_blocks(optimised.graph, any_order)
        if not held:
            return None
        _take_out(optimised.graph, held)
        opened = session(optimised, engine, optimise=False)  # it is
    except (OSError, ModelError) as error:  # an onnxruntime that does not save or load it
        _LOG.debug("tensors are not taken in blocks of channels: %s", error)
        return None
    return opened, [held.get(output.name, output.name) for output in model.graph.output]


def _optimised(model: onnx.ModelProto, engine: Engine) -> onnx.ModelProto:
    """A model as onnxruntime runs it, which it writes to files only: here to one in memory, without a name."""
    with os.fdopen(os.memfd_create("optimised"), "rb") as file:
        session(model, engine, save_as=Path(f"/proc/self/fd/{file.fileno()}"))
        optimised = onnx.ModelProto()
        optimised.ParseFromString(file.read())
        return optimised


def _held_in_blocks(graph: onnx.GraphProto, names: Collection[str]) -> dict[str, str]:
    """The tensor in blocks that onnxruntime makes each of the tensors from; none where it has channels more."""
    rows = {t.name: t.dims[0] for t in graph.initializer if t.dims}
    held = dict[str, int | None]()  # channels: the rows of a weight, which are padded to whole blocks
    found = {}
    for node in graph.node:
        if node.domain != _DOMAIN:
            continue
        if node.op_type == "Conv":
            held[node.output[0]] = rows.get(node.input[1])
        elif node.op_type.endswith("Pool"):
            held[node.output[0]] = held.get(node.input[0])
        elif node.op_type == "ReorderOutput":
            channels = [a.i for a in node.attribute if a.name == "channels"]
            if node.output[0] in names and channels == [held.get(node.input[0])]:
                found[node.output[0]] = node.input[0]
    return found


def _take_out(graph: onnx.GraphProto, held: dict[str, str]) -> None:
    """Make the tensors that are held outputs instead of the rearranged ones."""
    read = {name for node in graph.node for name in node.input}
    nodes = [node for node in graph.node if node.output[0] not in held or node.output[0] in read]
    outputs = [onnx.ValueInfoProto(name=held.get(output.name, output.name)) for output in graph.output]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("output")
    graph.output.extend(outputs)
