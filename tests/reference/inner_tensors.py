"""Tensors inside a model, from one run of onnxruntime with its optimisation off."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from small_models import Arrays, run


def inner_tensors(model: onnx.ModelProto, inputs: Arrays, names: Iterable[str] | None = None) -> Arrays:
    """The named tensors, all that nodes make by default; inputs too where they are named."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    wanted = list(names) if names is not None else [n for node in model.graph.node for n in node.output if n]
    made = [name for name in wanted if name not in inputs]
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made)
    found = {**inputs, **(dict(zip(made, run(exposed, inputs), strict=True)) if made else {})}
    return {name: found[name] for name in wanted}
