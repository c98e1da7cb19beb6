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
from quark.onnx.fast_finetune.settings import HOLDOUT, LeastSquaresSettings, rows_to_use
from quark.onnx.graph.write_back import write_integers
from quark.onnx.plan.layer_data import core_geometry
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.report.layer_report import LayerReport

__all__ = ["finetune_layers"]

_FREED_BYTES = 16 << 20


def finetune_layers(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    plan: Plan,
    samples: KeptSamples,
    settings: LeastSquaresSettings,
    *,
    threads: int,
    float_first: bool,
    on_layer: Callable[[LayerReport], None],
) -> tuple[LayerReport, ...]:
    """Finetune the layers of a plan in graph order; `quantized` is changed in place, integer initializers only.

    Each layer sees the outputs of the layers before it as they are after finetuning.

    Args:
        samples: the calibration data; used up.
        float_first: compute all float targets before the first layer is solved, and keep them (memory level 0).
        on_layer: called after each layer; what it raises (a KeyboardInterrupt, say) ends the run.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """
    pool = _core.ThreadPool(threads)
    initializers = {t.name: t for t in quantized.graph.initializer}
    batches = LayerBatches(float_model, quantized, plan, samples, threads=threads, float_first=float_first)
    reports = []
    for index, layer in enumerate(plan.layers):
        started = time.perf_counter()
        _core.return_memory(_FREED_BYTES)  # the tensors of the walk are as long-lived as they are large
        core = _core_layer(layer, samples.samples, settings)
        problem = ""
        for x, y in batches.of(index):
            problem = problem or _feed(core, x, y, layer, pool)
        report = _solve(core, layer, settings, initializers, pool, problem, started)
        reports.append(report)
        on_layer(report)
    return tuple(reports)


def _core_layer(layer: LayerPlan, samples: int, settings: LeastSquaresSettings) -> _core.Layer:
    outputs, inputs = layer.weight.rows.shape
    return _core.Layer(
        inputs,
        outputs // layer.groups,
        samples,
        rows_to_use(inputs),
        groups=layer.groups,
        conv=core_geometry(layer.conv) if layer.conv else None,
        holdout=HOLDOUT,
        seed=settings.seed,
        x_scale=layer.input.scale,
        x_zero_point=layer.input.zero_point,
    )


def _feed(
    core: _core.Layer, x: NDArray[np.generic], y: NDArray[np.float32], layer: LayerPlan, pool: _core.ThreadPool
) -> str:
    """Adds a batch; what went wrong, if anything did."""
    if layer.factor != 1:
        y = y / np.float32(layer.factor)
    if layer.input_transposed:
        x = x.T
    if x.dtype not in (np.float32, np.uint8, np.int8):
        x = x.astype(np.float32)
    try:
        core.feed(np.ascontiguousarray(x), np.ascontiguousarray(y), pool)
    except ValueError as error:
        return f"its data does not fit: {error} (input {x.shape}, float output {y.shape})"
    return ""


def _solve(
    core: _core.Layer,
    layer: LayerPlan,
    settings: LeastSquaresSettings,
    initializers: dict[str, onnx.TensorProto],
    pool: _core.ThreadPool,
    problem: str,
    started: float,
) -> LayerReport:
    weight, bias = layer.weight, layer.bias
    outputs, inputs = weight.rows.shape
    about = {"name": layer.node, "op_type": layer.op_type, "inputs": inputs, "outputs": outputs}
    if problem:
        return LayerReport(**about, reason=problem, seconds=time.perf_counter() - started)
    factor = np.float32(layer.factor)
    try:
        solved = core.least_squares(
            weight.rows,
            weight.rows_q,
            weight.scale,
            weight.zero_point,
            qmin=weight.qmin,
            qmax=weight.qmax,
            bias=None if bias is None else bias.real / factor,
            bias_scale=None if bias is None or bias.initializer is None else bias.scale / factor,
            bias_qmin=bias.qmin if bias else 0,
            bias_qmax=bias.qmax if bias else 0,
            update_bias=settings.update_bias,
            free=settings.free,
            damping=np.array(settings.damping),
            max_sweeps=settings.max_sweeps,
            pool=pool,
        )
    except ValueError as error:
        return LayerReport(**about, reason=str(error), seconds=time.perf_counter() - started)
    except MemoryError as error:
        raise FinetuneError(f"layer {layer.node!r} (K = {inputs}, {outputs} outputs): out of memory") from error
    if solved["accepted"]:
        integers = solved["weight"].T if weight.transposed else solved["weight"]
        write_integers(initializers[weight.initializer], integers)
        if bias is not None and bias.initializer is not None and solved["bias"] is not None:
            write_integers(initializers[bias.initializer], solved["bias"])
    square = float(factor) ** 2
    return LayerReport(
        **about,
        accepted=solved["accepted"],
        reason="" if solved["accepted"] else "no candidate is better than rounding to nearest on held-out rows",
        candidate=solved["candidate"],
        improved=solved["improved"],
        before=_scaled(solved["before"], square),
        after=_scaled(solved["after"], square),
        power=_scaled(solved["power"], square),
        rows=solved["rows"],
        seconds=time.perf_counter() - started,
    )


def _scaled(pair: tuple[float, float], factor: float) -> tuple[float, float]:
    return factor * pair[0], factor * pair[1]
