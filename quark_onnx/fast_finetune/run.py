"""Finetune: walk both graphs through the calibration data and solve one layer after the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.errors import FinetuneError
from quark.onnx.fast_finetune.layer_batches import LayerBatches
from quark.onnx.fast_finetune.samples import KeptSamples
from quark.onnx.fast_finetune.solver import LayerSolver
from quark.onnx.graph.write_back import write_integers
from quark.onnx.inference import Engine
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.report.layer_report import LayerReport

__all__ = ["finetune_layers"]

_FREED_BYTES = 16 << 20


def finetune_layers(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    plan: Plan,
    samples: KeptSamples,
    solver: Callable[[LayerPlan], LayerSolver],
    engine: Engine,
    *,
    float_first: bool,
    on_layer: Callable[[LayerReport], None],
) -> tuple[LayerReport, ...]:
    """Finetune the layers of a plan in graph order; `quantized` is changed in place, integer initializers only.

    Each layer sees the outputs of the layers before it as they are after finetuning.

    Args:
        samples: the calibration data; used up.
        solver: opens the solver of a layer.
        float_first: compute all float targets before the first layer is solved, and keep them (memory level 0).
        on_layer: called after each layer; what it raises (a KeyboardInterrupt, say) ends the run.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """
    initializers = {t.name: t for t in quantized.graph.initializer}
    batches = LayerBatches(float_model, quantized, plan, samples, engine, float_first=float_first)
    reports = []
    for index, layer in enumerate(plan.layers):
        started = time.perf_counter()
        _core.return_memory(_FREED_BYTES)  # the tensors of the walk are as long-lived as they are large
        opened, problem = solver(layer), ""
        for x, y in batches.of(index):
            problem = problem or _feed(opened, x, y, layer)
        report = _solve(opened, layer, initializers, problem, started)
        reports.append(report)
        on_layer(report)
    return tuple(reports)


def _feed(solver: LayerSolver, x: NDArray[np.generic], y: NDArray[np.float32], layer: LayerPlan) -> str:
    """Adds a batch; what went wrong, if anything did."""
    if layer.factor != 1:
        y = y / np.float32(layer.factor)
    if layer.input_transposed:
        x = x.T
    if x.dtype not in (np.float32, np.uint8, np.int8):
        x = x.astype(np.float32)
    try:
        solver.feed(np.ascontiguousarray(x), np.ascontiguousarray(y))
    except ValueError as error:
        return f"its data does not fit: {error} (input {x.shape}, float output {y.shape})"
    return ""


def _solve(
    solver: LayerSolver, layer: LayerPlan, initializers: dict[str, onnx.TensorProto], problem: str, started: float
) -> LayerReport:
    weight, bias = layer.weight, layer.bias
    outputs, inputs = weight.rows.shape
    about = {"name": layer.node, "op_type": layer.op_type, "inputs": inputs, "outputs": outputs}
    if problem:
        return LayerReport(**about, reason=problem, seconds=time.perf_counter() - started)
    solve_started = time.perf_counter()
    try:
        solved = solver.solve()
    except ValueError as error:
        return LayerReport(**about, reason=str(error), seconds=time.perf_counter() - started)
    except MemoryError as error:
        raise FinetuneError(f"layer {layer.node!r} (K = {inputs}, {outputs} outputs): out of memory") from error
    solve_seconds = time.perf_counter() - solve_started
    accepted = solved.improved > 0
    if accepted:
        write_integers(initializers[weight.initializer], solved.weight.T if weight.transposed else solved.weight)
        if bias is not None and bias.initializer is not None and solved.bias is not None:
            write_integers(initializers[bias.initializer], solved.bias)
    square = float(layer.factor) ** 2
    return LayerReport(
        **about,
        accepted=accepted,
        reason="" if accepted else "nothing is better than rounding to nearest on held-out rows",
        candidate=solved.candidate,
        improved=solved.improved,
        before=_scaled(solved.before, square),
        after=_scaled(solved.after, square),
        power=_scaled(solved.power, square),
        rows=solved.rows,
        seconds=time.perf_counter() - started,
        solve_seconds=solve_seconds,
    )


def _scaled(pair: tuple[float, float], factor: float) -> tuple[float, float]:
    return factor * pair[0], factor * pair[1]
