"""onnxruntime sessions, made in one place."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.errors import ModelError

__all__ = ["BatchMerging", "batch_is_free", "session"]

Batch = dict[str, NDArray[np.generic]]


def session(model: onnx.ModelProto, *, threads: int, optimise: bool) -> ort.InferenceSession:
    """An onnxruntime session on the CPU.

    Args:
        optimise: with onnxruntime's graph optimisation at its default, or off, which is the model's own definition.

    Raises:
        ModelError: the model is invalid.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the core needs the processors in between
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = False  # as fast, and freed memory goes back
    options.graph_optimization_level = (
        ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    )
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise ModelError(f"onnxruntime cannot load the model: {error}") from error


class BatchMerging:
    """Whether a model takes several items as one batch: its first axis is the batch and is free.

    Args:
        model: not changed.
    """

    def __init__(self, model: onnx.ModelProto, *, threads: int) -> None:
        self._model, self._threads = model, threads

    def is_exact(self, a: Batch, b: Batch) -> bool:
        """Whether the outputs for `a` and `b` joined are those for `a` and `b`, joined. Runs the model on both."""
        if not batch_is_free(self._model):
            return False
        run = session(self._model, threads=self._threads, optimise=False)
        try:
            apart = [run.run(None, item) for item in (a, b)]
            joined = run.run(None, {name: np.concatenate([a[name], b[name]]) for name in a})
        except Exception:  # onnxruntime's exceptions have no base of their own; whatever it was, we do not merge
            return False
        wanted = [np.concatenate(pair) if pair[0].ndim else pair[0] for pair in zip(*apart, strict=True)]
        return all(map(_alike, wanted, joined))


def _alike(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
    """Equal up to the rounding of another order of additions."""
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    largest = float(np.abs(a).max(initial=0))
    return bool(np.isfinite(largest)) and np.allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


def batch_is_free(model: onnx.ModelProto) -> bool:
    """Whether every input and output has a first axis whose length the model leaves open."""
    constants = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return all(map(_first_axis_is_free, (*inputs, *model.graph.output)))


def _first_axis_is_free(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) > 0 and dims[0].dim_value <= 0
