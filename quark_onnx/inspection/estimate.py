"""How long a run will take, and how much memory: from one measured pass and from the sizes of the layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from quark.onnx import _core
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.plan.types import LayerPlan
from quark.onnx.solvers.choose_solver import is_trained_in_steps
from quark.onnx.solvers.layer_memory import least_squares_bytes

__all__ = ["DataWork", "Estimate", "LayerWork", "estimate"]


@dataclass(frozen=True)
class LayerWork:
    """A layer to be tuned: `positions` outputs of each channel a sample, each of `inputs` inputs."""

    plan: LayerPlan
    positions: int
    inputs: int
    outputs: int


@dataclass(frozen=True)
class DataWork:
    """The data: so many `samples`, each with `bytes` of inputs, for which a run of the model takes `seconds`."""

    samples: int
    bytes: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """About, as within a factor of two or three.

    Attributes:
        seconds: of the whole run.
        memory_mib: the most resident memory of the process.
    """

    seconds: float
    memory_mib: float


# Seconds, fitted to runs of the models of docs/benchmarks.md on two cores.
_OF_A_RUN, _OF_A_LAYER = 0.3, 0.03
_PASSES, _FURTHER_PASSES = 2.0, 2.0  # over the data: ranges and the comparison; the walk through both models
_PRODUCTS = 2e10  # a second and thread: products of inputs for the moments, or of a step of the loops
_OF_A_STEP = 3.0  # forward, and backward to outputs and to weights
_COPIES, _BUFFERS = 3, 40 << 20  # of the model; of onnxruntime and the core


def estimate(
    model: onnx.ModelProto,
    work: Sequence[LayerWork],
    data: DataWork,
    algorithm: FastFinetuneConfig | None,
    threads: int,
) -> Estimate:
    """How long, and how much memory.

    Args:
        model: the float model.
        work: the layers to be tuned.
        data: to calibrate with.
        algorithm: what tunes the layers; None: nothing.
    """
    used = data.samples if algorithm is None else min(data.samples, algorithm.data_size)
    products = sum(used * one.positions * one.inputs**2 * one.plan.groups / 2 for one in work)
    if algorithm is not None:
        products += sum(_in_steps(one, algorithm) for one in work)
    passes = _PASSES * data.samples + (_FURTHER_PASSES * used if work else 0)
    needed = _OF_A_RUN + _OF_A_LAYER * len(work) + passes * data.seconds + products / (_PRODUCTS * threads)
    resident, _ = _core.resident_memory()
    layers = [least_squares_bytes(one.plan, threads) + 2 * 4 * used * one.positions * one.outputs for one in work]
    memory = resident + _BUFFERS + _COPIES * model.ByteSize() + used * data.bytes + max(layers, default=0)
    return Estimate(round(needed, 1), round(memory / (1 << 20)))


def _in_steps(one: LayerWork, algorithm: FastFinetuneConfig) -> float:
    """The products of the published loop, where it trains the layer."""
    if algorithm.solver != "gradient" and not is_trained_in_steps(one.plan, algorithm):
        return 0.0
    steps = algorithm.num_iterations * algorithm.batch_size
    return _OF_A_STEP * steps * one.positions * one.inputs * one.outputs
