"""onnxruntime sessions, made in one place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.errors import ModelError, OutOfMemoryError, UnsupportedError
from quark.onnx.inference.gpu_provider import gpu_provider
from quark.onnx.inference.large_models import serialized_for
from quark.onnx.system.memory_limit import MemoryLimit, unless_out_of_memory
from quark.onnx.system.native_calls import leave_if_python_ends, native_call

__all__ = [
    "READY",
    "ROOM",
    "BatchMerging",
    "Engine",
    "alike",
    "batch_is_free",
    "in_order",
    "session",
    "submitted",
]

# What onnxruntime 1.32 says of a weight of several nodes, which it turns into uint8 for each, without VNNI.
_REPLACED_TWICE = "Attempt to replace the existing tensor"
ROOM = 256 << 20  # bytes that optional work needs: with fewer, onnxruntime may end the process in place of an error
READY = 2  # results that wait for the caller, so that no thread does while the caller works
_WAITING_BYTES = 64 << 20  # of these; where results are larger fewer wait
_AT_ONCE_BYTES = 96 << 20  # of the tensors of runs that go on at the same time; where they are larger there are fewer

Batch = dict[str, NDArray[np.generic]]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Engine:
    """What onnxruntime runs models with.

    Attributes:
        threads: for all that runs at the same time.
        device: "cpu", "cuda" or "cuda:N".
        memory: how much may be taken.
        solver_device: where layers are tuned; None: the CPU.
    """

    threads: int
    device: str = "cpu"
    memory: MemoryLimit = MemoryLimit()  # noqa: RUF009 (it is frozen)
    solver_device: _core.Device | None = None

    def shared_out(self, runs: int, each_bytes: float = 0.0) -> tuple[int, Engine]:
        """How many of `runs` independent runs go on at the same time, and the engine of each.

        Args:
            each_bytes: what the tensors of one run take, as far as that is known.
        """
        at_once = max(1, min(self.threads, runs, int(_AT_ONCE_BYTES / max(each_bytes, 1))))
        return at_once, replace(self, threads=-(-self.threads // at_once))

    def providers(self) -> list[str | tuple[str, dict[str, Any]]]:
        """onnxruntime's execution providers, the first one first; the CPU does what a GPU cannot."""
        kind, _, number = self.device.partition(":")
        if kind == "cpu":
            return ["CPUExecutionProvider"]
        provider = gpu_provider()
        return [(provider.name, {"device_id": int(number or 0), **provider.options}), "CPUExecutionProvider"]


def session(
    model: onnx.ModelProto,
    engine: Engine,
    *,
    fuse_qdq: bool = False,
    optimise: bool = True,
    save_as: Path | None = None,
) -> ort.InferenceSession:
    """An onnxruntime session.

    Args:
        fuse_qdq: as onnxruntime runs a Q/DQ model by default, with integer kernels that may differ from machine to
            machine, but without the saturating ones that it has for processors without VNNI. Off, or where a weight of
            several nodes has no other kernel there, each Q and DQ is computed as ONNX defines it, with float operators
            in between.
        optimise: False: the graph as it is, slower, with other last bits.
        save_as: write the optimised graph there.

    Raises:
        ModelError: the model is invalid.
        OutOfMemoryError: there is too little memory for it.
        UnsupportedError: the device does not start.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = engine.threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_as is not None:
        options.optimized_model_filepath = str(save_as)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the core needs the processors in between
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse_qdq else "1")
    options.add_session_config_entry("session.x64quantprecision", "1" if fuse_qdq else "0")  # see saturation.py
    # What an error's log says, the exception says as well; only why a GPU does not start is in the log alone.
    options.log_severity_level = 4 if engine.device == "cpu" else 3
    options.enable_cpu_mem_arena = False  # as fast, and freed memory goes back
    try:  # without fallback: it would go on on the CPU
        content, kept = serialized_for(options, model, aside=save_as is None)
        opened = _Session(content, options, providers=engine.providers(), enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        if fuse_qdq and _REPLACED_TWICE in str(error):  # no kernel is both exact and there
            return session(model, engine, optimise=optimise, save_as=save_as)
        raise unless_out_of_memory(error, ModelError(f"onnxruntime cannot load the model: {error}")) from error
    if engine.device != "cpu" and gpu_provider().name not in opened.get_providers():  # its log alone says so
        raise UnsupportedError(f"onnxruntime's {gpu_provider().name} does not start on {engine.device!r}")
    opened.tensors_in_use = kept  # they go with the session
    return opened


class _Session(ort.InferenceSession):  # type: ignore[misc]  # onnxruntime ships no types
    """A session that a daemon thread leaves when the interpreter ends."""

    def __init__(self, content: bytes, options: ort.SessionOptions, **keywords: object) -> None:
        with native_call(lambda: options.set_load_cancellation_flag(True)):
            super().__init__(content, options, **keywords)

    def run(self, output_names: Any, input_feed: Any, run_options: ort.RunOptions | None = None) -> list[Any]:
        if run_options is None:
            run_options = ort.RunOptions()
            run_options.log_severity_level = 4  # what an error's log says, the exception says as well
        with native_call(lambda: setattr(run_options, "terminate", True)):
            outputs: list[Any] = super().run(output_names, input_feed, run_options)
            return outputs


def submitted(executor: ThreadPoolExecutor, run: Callable[..., _Result], *arguments: object) -> Future[_Result]:
    """A call that a thread of the executor makes; this one does where Python is ending and starts no threads any more.

    Raises:
        OutOfMemoryError: the system starts no thread.
        SystemExit: as `leave_if_python_ends`.
    """
    try:
        return executor.submit(run, *arguments)
    except RuntimeError as error:  # Python's only kind for it, and for a pool that is shut down
        leave_if_python_ends()
        if "interpreter shutdown" in str(error):
            return _finished(run, *arguments)
        if "can't start new thread" not in str(error):
            raise
        raise OutOfMemoryError(f"{error}: give more memory or threads, or set NumThreads to 1") from error


def _finished(run: Callable[..., _Result], *arguments: object) -> Future[_Result]:
    future = Future[_Result]()
    future.set_running_or_notify_cancel()
    try:
        future.set_result(run(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future


def in_order(run: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int) -> Iterator[_Result]:
    """`run` of every item, in the order of the items; up to `threads` at a time, and `READY` ahead of the caller, or
    fewer where results are large.
    """
    if threads == 1:
        yield from map(run, items)
        return
    ahead: deque[Future[_Result]] = deque()
    most = threads  # until the first result shows how large they are
    with ThreadPoolExecutor(threads) as executor:
        try:
            for item in items:
                ahead.append(submitted(executor, run, item))
                if len(ahead) >= most:
                    result = ahead.popleft().result()
                    most = max(threads, min(threads + READY, _WAITING_BYTES // max(_bytes_of(result), 1)))
                    yield result
                    del result
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _bytes_of(value: object) -> int:
    """What the arrays in a result take."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(_bytes_of, parts))


class BatchMerging:
    """Whether a model takes several items as one batch: its first axis is the batch and is free.

    Args:
        model: not changed.
    """

    def __init__(self, model: onnx.ModelProto, engine: Engine) -> None:
        self._model, self._engine = model, engine
        self._exact: bool | None = None

    def is_exact(self, a: Batch, b: Batch) -> bool:
        """Whether the outputs for `a` and `b` joined are those for `a` and `b`, joined.

        The first two items decide for all: the model is run on them.
        """
        if self._exact is None:
            self._exact = batch_is_free(self._model) and self._try(a, b)
        return self._exact

    def _try(self, a: Batch, b: Batch) -> bool:
        run = session(self._model, self._engine)
        try:
            apart = [run.run(None, item) for item in (a, b)]
            joined = run.run(None, {name: np.concatenate([a[name], b[name]]) for name in a})
            wanted = [np.concatenate(pair) if pair[0].ndim else pair[0] for pair in zip(*apart, strict=True)]
        except Exception:  # onnxruntime's exceptions have no base of their own; whatever it was, we do not merge
            return False
        return all(map(alike, wanted, joined))


def alike(a: NDArray[np.generic], b: NDArray[np.generic]) -> bool:
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
