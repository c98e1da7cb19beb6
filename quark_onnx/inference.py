"""onnxruntime sessions, made in one place."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["BatchMerging", "session"]

Batch = dict[str, NDArray[np.generic]]


def session(model: onnx.ModelProto, *, threads: int, optimise: bool) -> ort.InferenceSession:
    """An onnxruntime session on the CPU.

    Args:
        optimise: with onnxruntime's graph optimisation at its default, or off, which is the model's own definition.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class BatchMerging:
    """Whether a model takes several items as one batch: its first axis is the batch and is free.

    Args:
        model: not changed.
    """

    def __init__(self, model: onnx.ModelProto, *, threads: int) -> None:
        self._model, self._threads = model, threads

    def is_exact(self, a: Batch, b: Batch) -> bool:
        """Whether the outputs for `a` and `b` joined are those for `a` and `b`, joined. Runs the model on both."""
        constants = {t.name for t in self._model.graph.initializer}
        free = [_first_axis_is_free(v) for v in self._model.graph.input if v.name not in constants]
        if not all(free) or not all(map(_first_axis_is_free, self._model.graph.output)):
            return False
        run = session(self._model, threads=self._threads, optimise=False)
        apart = [run.run(None, item) for item in (a, b)]
        try:
            joined = run.run(None, {name: np.concatenate([a[name], b[name]]) for name in a})
        except Exception:  # onnxruntime's exceptions have no base of their own; whatever it was, we do not merge
            return False
        wanted = [np.concatenate(pair) if pair[0].ndim else pair[0] for pair in zip(*apart, strict=True)]
        return all(w.shape == j.shape and np.allclose(w, j, rtol=1e-3, atol=1e-5) for w, j in zip(wanted, joined, strict=True))


def _first_axis_is_free(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].dim_value <= 0
