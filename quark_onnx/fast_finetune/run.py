"""Finetune: walk both graphs through the calibration data and solve one layer after the other."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.errors import FinetuneError
from quark.onnx.fast_finetune.samples import KeptSamples
from quark.onnx.fast_finetune.settings import HOLDOUT, LeastSquaresSettings, rows_to_use
from quark.onnx.fast_finetune.walk import Step, Walk
from quark.onnx.graph.write_back import write_integers
from quark.onnx.plan.layer_data import core_geometry
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.report.layer_report import LayerReport

__all__ = ["finetune_layers"]


class _FloatTargets:
    """The float graph's target of each layer, batch by batch; ahead of time when there is memory for it."""

    def __init__(self, walk: Walk, plan: Plan, batches: int, *, ahead: bool) -> None:
        self._walk, self._plan = walk, plan
        self._step: Step | None = None
        self._ahead: list[list[NDArray[np.generic]]] | None = None
        if ahead:
            self._ahead = []
            for layer in plan.layers:
                step = walk.advance()
                self._ahead.append([step.run(b)[layer.target] for b in range(batches)])

    def start(self) -> None:
        """Before the first batch of a layer."""
        self._step = None if self._ahead is not None else self._walk.advance()

    def get(self, index: int, batch: int) -> NDArray[np.float32]:
        if self._ahead is not None:
            return self._ahead[index][batch].astype(np.float32, copy=False)
        assert self._step is not None
        return self._step.run(batch)[self._plan.layers[index].target].astype(np.float32, copy=False)

    def finish(self, index: int) -> None:
        """After the last batch of a layer."""
        if self._ahead is not None:
            self._ahead[index] = []


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
    targets = [[layer.target] for layer in plan.layers]
    float_walk = Walk("float", float_model, targets, samples.store, threads=threads, optimise=True)
    quantized_walk = Walk(
        "quantized", quantized, [[layer.input.tensor] for layer in plan.layers], samples.store, threads=threads
    )
    for batch in range(samples.batches):
        inputs = samples.load(batch)
        for walk in (float_walk, quantized_walk):
            walk.put_inputs(batch, {name: inputs[name] for name in walk.dataflow.inputs})
        samples.drop(batch)
    initializers = {t.name: t for t in quantized.graph.initializer}
    float_targets = _FloatTargets(float_walk, plan, samples.batches, ahead=float_first)
    reports = []
    for index, layer in enumerate(plan.layers):
        started = time.perf_counter()
        core = _core_layer(layer, samples.samples, settings)
        float_targets.start()
        step = quantized_walk.advance()
        problem = ""
        for batch in range(samples.batches):
            y = float_targets.get(index, batch)
            x = step.run(batch)[layer.input.tensor]
            if not problem:
                problem = _feed(core, x, y, layer, pool)
        float_targets.finish(index)
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
