"""Weights that several layers share: tuned before the walk from layer to layer, on the inputs of all of them."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import cast

from quark.onnx import _core
from quark.onnx.fast_finetune.layer_batches import TwoGraphs
from quark.onnx.fast_finetune.walk import Walk
from quark.onnx.inference.sessions import in_order
from quark.onnx.plan.reasons import Reason
from quark.onnx.plan.types import LayerPlan
from quark.onnx.solvers.solve_layer import Solved, core_input, out_of_memory, solve
from quark.onnx.solvers.solver import LayerSolver, LeftOut, OpenSolver, SharedSolver
from quark.onnx.system.native_calls import native_call

__all__ = ["solve_shared_weights"]

_Fed = tuple[LayerPlan, LayerSolver, str]  # with what prevents a solution


def solve_shared_weights(
    graphs: TwoGraphs, layers: Sequence[LayerPlan], solver: OpenSolver
) -> Generator[Solved, None, None]:
    """A solution for each weight, given with each of its layers once the data of the last of them is there.

    The layers' outputs are to be those of the float weight on the same inputs. The float model's would not do: what
    such a layer is fed may depend on its own weight, so that errors before it are not those that will be there.

    Args:
        graphs: whose samples are kept.
        layers: those that share a weight, in graph order.
        solver: opens a SharedSolver for them, or a LeftOut.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of the graph.
    """
    samples, engine = graphs.samples, graphs.engine
    at_once, each = engine.shared_out(samples.batches)
    walk = Walk("shared", graphs.quantized, [(layer.input.tensor,) for layer in layers], samples.store, each)
    for batch in range(samples.batches):
        arrays = samples.load(batch)
        walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
    pool, fed = _core.ThreadPool(engine.threads), dict[str, list[_Fed]]()
    for layer in layers:
        started, opened = time.perf_counter(), solver(layer, pool)
        problem: str = opened.problem if isinstance(opened, LeftOut) else ""
        for arrays in in_order(walk.advance().run, range(samples.batches), threads=at_once):
            x = arrays[layer.input.tensor]
            try:
                if not problem:
                    with native_call(pool.cancel):
                        cast(SharedSolver, opened).feed_input(core_input(x, layer))
            except ValueError as error:
                problem = Reason.DATA_DOES_NOT_FIT.why(problem=f"{error} (input {x.shape})")
            except MemoryError as error:
                problem = out_of_memory(error)
        together = fed.setdefault(layer.weight.initializer, [])
        together.append((layer, opened, problem))
        if len(together) == 1 + len(layer.shares):
            with native_call(pool.cancel):
                solved = _solve(fed.pop(layer.weight.initializer), started)
            yield from solved


def _solve(together: list[_Fed], started: float) -> list[Solved]:
    first, solver, _ = together[0]
    problem = next((f"of {layer.node!r}: {why}" for layer, _, why in together if why), "")
    try:
        for _, other, _ in together[1:]:
            if not problem:
                cast(SharedSolver, solver).join(other)
    except MemoryError as error:
        problem = out_of_memory(error)
    solved = solve(solver, first, problem, started)
    return [replace(solved, layer=layer) for layer, _, _ in together]
