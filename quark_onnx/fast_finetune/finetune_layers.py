"""Finetune: data for the layers, integers for each, and what was done; layer after layer, or all at the same time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx

from quark.onnx import _core
from quark.onnx.errors import OutOfMemoryError
from quark.onnx.fast_finetune.float_layers import float_layers
from quark.onnx.fast_finetune.layer_batches import LayerBatches, LayerData, TwoGraphs, WalkOptions
from quark.onnx.fast_finetune.selective import Judge
from quark.onnx.fast_finetune.shared_weight_tuning import solve_shared_weights
from quark.onnx.graph.editor import constant_tensors
from quark.onnx.inference.sessions import submitted
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import LayerPlan, Plan
from quark.onnx.qdq.write_back import write_integers
from quark.onnx.report.layer_report import LayerReport
from quark.onnx.solvers.solve_layer import Solved, core_input, out_of_memory, solve
from quark.onnx.solvers.solver import LayerSolver, OpenSolver, Solution
from quark.onnx.system.freed_memory import FreedMemory
from quark.onnx.system.native_calls import leave_if_python_ends, native_call
from quark.onnx.whole_model.keep_better import Change

__all__ = ["finetune_layers"]

_LOG = logging.getLogger(__name__)
_LOOKS_UP = 0.5  # seconds between two looks at whether Python ends

_Initializers = dict[str, onnx.TensorProto]


def finetune_layers(
    graphs: TwoGraphs,
    plan: Plan,
    solver: OpenSolver,
    options: WalkOptions,
    on_layer: Callable[[LayerReport], None],
    judge: Judge | None = None,
) -> tuple[tuple[LayerReport, ...], list[Change]]:
    """Finetune the layers of a plan, those that share a weight first, the others in graph order.

    Args:
        solver: opens the solver of a layer, which works with the pool that it is given.
        on_layer: called after each layer; what it raises (a KeyboardInterrupt, say) ends the run.
        judge: decides whether a layer's integers stay; not with `parallel`, nor with layers that share a weight.

    Returns:
        A report of each layer, and what was changed, in the order in which it was.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """
    initializers, reports = constant_tensors(graphs.quantized.graph), dict[int, LayerReport]()
    changes = list[Change]()

    def put_in(results: Generator[Solved, None, None], judge: Judge | None) -> None:
        with closing(results):
            for solved in results:
                for level, text in solved.messages:
                    _LOG.log(level, "%s", text)
                report = _write_back(solved, initializers, judge, changes)
                reports[id(solved.layer)] = report
                on_layer(report)

    shared = [layer for layer in plan.layers if layer.shares]
    if shared:
        put_in(solve_shared_weights(graphs, shared, solver), None)
    layers = tuple(layer for layer in plan.layers if not layer.shares)
    if layers:
        _, each = graphs.engine.shared_out(graphs.samples.batches)
        batches = LayerBatches(
            graphs,
            [layers] if options.parallel else [(layer,) for layer in layers],
            options,
            outputs=judge.outputs if judge is not None else (),
            float_layers=float_layers(graphs.float_model, layers, each) if options.parallel else (),
        )
        if judge is not None:
            judge.start(batches.outputs)
        order = _side_by_side if options.parallel else _one_by_one
        put_in(order(layers, batches, solver, graphs.engine.threads), judge)
    return tuple(reports[id(layer)] for layer in plan.layers), changes


def _one_by_one(
    layers: tuple[LayerPlan, ...], batches: LayerBatches, solver: OpenSolver, threads: int
) -> Generator[Solved, None, None]:
    """Each layer's data is computed when the layers before it are written back."""
    pool, freed = _core.ThreadPool(threads), FreedMemory()
    for index, layer in enumerate(layers):
        started = time.perf_counter()
        freed.keep_little()
        opened, problem = solver(layer, pool), ""
        try:
            for (data,) in batches.of(index):
                with native_call(pool.cancel):
                    problem = problem or _feed(opened, data, layer)
                if index == 0:  # the model's inputs go
                    freed.keep_little()
        except OutOfMemoryError as error:  # the walk cannot go on; what is finetuned is not lost
            problem = out_of_memory(error)
            yield from (solve(opened, left, problem, started) for left in layers[index:])
            return
        with native_call(pool.cancel):
            solved = solve(opened, layer, problem, started)
        yield solved


def _side_by_side(
    layers: tuple[LayerPlan, ...], batches: LayerBatches, solver: OpenSolver, threads: int
) -> Generator[Solved, None, None]:
    """All layers get their data in one pass; then each is solved by a thread of its own, several at a time."""
    pools = [_core.ThreadPool(1) for _ in layers]
    opened, problems = list(map(solver, layers, pools)), [""] * len(layers)

    def feed(index: int, data: LayerData) -> None:
        problems[index] = problems[index] or _feed(opened[index], data, layers[index])

    def solve_now(opened: LayerSolver, layer: LayerPlan, problem: str) -> Solved:
        return solve(opened, layer, problem, time.perf_counter())

    with ThreadPoolExecutor(min(threads, len(layers))) as executor:
        try:
            for data in batches.of(0):
                for fed in [submitted(executor, feed, index, of_layer) for index, of_layer in enumerate(data)]:
                    fed.result()
            del data  # the last batch of all layers
            _core.return_memory()
            futures = {submitted(executor, solve_now, opened[i], layers[i], problems[i]): i for i in range(len(layers))}
            opened.clear()  # the data of a layer goes with its solver
            solved, turn = dict[int, Solved](), 0
            waits = set(futures)
            while waits:
                done, waits = wait(waits, timeout=_LOOKS_UP, return_when=FIRST_COMPLETED)
                leave_if_python_ends()  # it waits for the threads of the executor
                for future in done:  # an error ends the run at once, whichever layer it is of
                    solved[futures[future]] = future.result()
                while turn in solved:
                    yield solved.pop(turn)
                    turn += 1
        finally:  # Python's signals reach the main thread only: what other threads are still solving ends here
            for pool in pools:
                pool.cancel()
            executor.shutdown(wait=False, cancel_futures=True)


def _feed(solver: LayerSolver, data: LayerData, layer: LayerPlan) -> str:
    """Adds a batch; what went wrong, if anything did."""
    x, y, x_float, arrange = data.x, data.y, data.x_float, layer.arrangement
    if layer.factor != 1:
        y = y / np.float32(layer.factor)
    try:
        mixed_in = None if x_float is None else np.ascontiguousarray(arrange.input(x_float))
        solver.feed(core_input(x, layer), np.ascontiguousarray(arrange.output(y)), mixed_in)
    except ValueError as error:
        return Reason.DATA_DOES_NOT_FIT.why(problem=f"{error} (input {x.shape}, float output {y.shape})")
    except MemoryError as error:
        return out_of_memory(error)
    return ""


def _write_back(solved: Solved, initializers: _Initializers, judge: Judge | None, changes: list[Change]) -> LayerReport:
    started = time.perf_counter()
    layer, solution = solved.layer, solved.solution
    outputs, inputs = layer.weight.rows.shape
    about = {"name": layer.node, "op_type": layer.op_type, "inputs": inputs, "outputs": outputs}
    if solution is None:
        return LayerReport(**about, reason=solved.problem, seconds=solved.seconds)
    reason: str = Reason.NOTHING_BETTER.why()
    if solution.improved > 0:
        reason = _write(solution, layer, initializers, judge, changes)
        if reason:
            solution = replace(solution, improved=0, candidate="unchanged", after=solution.before)
    square = float(layer.factor) ** 2
    return LayerReport(
        **about,
        accepted=not reason,
        reason=reason,
        candidate=solution.candidate if reason else ", with ".join((solution.candidate, *layer.shares)),
        improved=solution.improved,
        before=_scaled(solution.before, square),
        after=_scaled(solution.after, square),
        power=_scaled(solution.power, square),
        rows=solution.rows,
        losses=solution.losses,
        notes=solution.notes,
        seconds=solved.seconds + time.perf_counter() - started,
        solve_seconds=solved.solve_seconds,
    )


def _write(
    solution: Solution, layer: LayerPlan, initializers: _Initializers, judge: Judge | None, changes: list[Change]
) -> str:
    """Puts a layer's integers in place. The judge's objection, upon which the old ones are there again; or ""."""
    weight, bias = layer.weight, layer.bias
    integers = {weight.initializer: weight.layout.values(solution.weight)}
    if bias is not None and bias.initializer is not None and solution.bias is not None:
        integers[bias.initializer] = solution.bias
    before = {name: deepcopy(initializers[name]) for name in integers}
    for name, values in integers.items():
        write_integers(initializers[name], values)
    objection = judge.objection() if judge is not None else ""
    if objection:
        for name, tensor in before.items():
            initializers[name].CopyFrom(tensor)
    elif not any(layer.node in change.layers for change in changes):  # a shared weight is written once for each layer
        changes.append(Change((layer.node, *layer.shares), before))
    return objection


def _scaled(pair: tuple[float, float], factor: float) -> tuple[float, float]:
    return factor * pair[0], factor * pair[1]
