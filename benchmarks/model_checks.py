"""What a result must be before its figures are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

_INTEGERS = {
    TensorProto.DataType.Value(sign + width) for sign in ("INT", "UINT") for width in ("2", "4", "8", "16", "32")
}


class CheckError(Exception):
    """A result is not what it claims to be; its figures must not be reported."""


def check_runs(model: Path) -> None:
    """The model is valid ONNX, and onnxruntime loads and runs it to finite outputs, optimised or not."""
    onnx.checker.check_model(str(model))
    for level in (ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = ort.SessionOptions()
        options.graph_optimization_level = level
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(0)
        feeds = {
            i.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in i.shape], dtype=np.float32)
            for i in session.get_inputs()
        }
        for output, value in zip(session.get_outputs(), session.run(None, feeds), strict=True):
            if not np.isfinite(value).all():
                raise CheckError(f"{model.name}: output {output.name!r} is not finite ({level})")


def check_only_integers_differ(plain: Path, finetuned: Path) -> int:
    """Both models are equal but for integer initializers that a DequantizeLinear reads as values (input 0).

    Returns how many of these differ.
    """
    a, b = onnx.load(plain), onnx.load(finetuned)
    values = {n.input[0] for n in a.graph.node if n.op_type == "DequantizeLinear"}
    old, new = ({i.name: i for i in m.graph.initializer} for m in (a, b))
    if old.keys() != new.keys():
        raise CheckError(f"{finetuned.name}: added or lost initializers {sorted(old.keys() ^ new.keys())}")
    changed = 0
    for name in old:
        before, after = onnx.numpy_helper.to_array(old[name]), onnx.numpy_helper.to_array(new[name])
        if old[name].data_type != new[name].data_type or before.shape != after.shape:
            raise CheckError(f"{finetuned.name}: initializer {name!r} changed its type or shape")
        if not np.array_equal(before, after):
            changed += 1
            if name not in values or old[name].data_type not in _INTEGERS:
                raise CheckError(f"{finetuned.name}: initializer {name!r} differs, and is no quantized weight or bias")
    for m in (a, b):
        del m.graph.initializer[:]
    if a.graph != b.graph or list(a.opset_import) != list(b.opset_import) or a.ir_version != b.ir_version:
        raise CheckError(f"{finetuned.name}: the graph differs from the plain model's in more than initializers")
    return changed
