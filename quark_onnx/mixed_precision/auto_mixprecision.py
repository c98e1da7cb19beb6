"""AMD Quark's AutoMixprecisionConfig as a `Target`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.config.algorithm import AutoMixprecisionConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.mixed_precision.target import Target

__all__ = ["Layers", "auto_target", "ignored_fields"]

_USUAL_DB = 30.0  # where no threshold is given: what a model keeps that 8 bits suit

_MEANINGLESS = {
    "metric_optimize_object": "the fewest bits that reach the threshold are looked for",
    "sensitivity_cache_file": "sensitivities take seconds, and are not kept",
    "worker_num": "NumThreads says how many threads there are",
    "dual_quant_nodes": "a tensor between two formats has one of them",
    "no_input_qdq_shared": "a tensor has one format for all of its readers",
    "shared_param_mode": "a weight that layers share has one format",
}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Layers:
    """Which layers a search may give another format.

    Attributes:
        op_types: their operators; None: all.
        included: their names; None: all.
        excluded: names of others.
    """

    op_types: tuple[str, ...] | None = None
    included: tuple[str, ...] | None = None
    excluded: tuple[str, ...] = ()

    def names(self, model: onnx.ModelProto) -> frozenset[str] | None:
        """The names of nodes of a prepared model; None: all nodes."""
        if self.op_types is None:
            return None
        return frozenset(
            node.name
            for node in model.graph.node
            if node.op_type in self.op_types
            and (self.included is None or node.name in self.included)
            and node.name not in self.excluded
        )


def auto_target(config: QConfig, algorithm: AutoMixprecisionConfig) -> tuple[Target, Layers]:
    """The target, whose formats are those of the configuration and of `target_layer_config`, and the layers."""
    other = algorithm.target_layer_config
    weights = tuple(dict.fromkeys((config.weight_spec, other.weight or config.weight_spec)))
    activations = tuple(dict.fromkeys((config.activation_spec, other.inputs or config.activation_spec)))
    threshold, goal = algorithm.metric_threshold, dict[str, Any]()
    if algorithm.metric_evaluate_fn is not None:
        goal = {"min_score": threshold, "evaluator": algorithm.metric_evaluate_fn}
    elif not threshold:
        goal = {"sqnr_db": _USUAL_DB}
    elif algorithm.metric_distance_fn is None and algorithm.metric_default == "sqnr":
        goal = {"sqnr_db": threshold}
    else:
        distance = algorithm.metric_distance_fn or _DISTANCES[algorithm.metric_default]
        signed = -threshold if algorithm.metric_default == "psnr" and not algorithm.metric_distance_fn else threshold
        goal = {"max_distance": signed, "distance": distance}
    layers = Layers(tuple(algorithm.target_op_type), algorithm.include_layers, tuple(algorithm.exclude_layers or ()))
    target = Target(weights=weights, activations=activations, output_index=algorithm.metric_output_index, **goal)
    return target, layers


def ignored_fields(algorithm: AutoMixprecisionConfig) -> tuple[str, ...]:
    """What was set and has no effect, a line each."""
    return tuple(
        f"AutoMixprecisionConfig.{name}={value!r} has no effect: {_MEANINGLESS[name]}"
        for name, value in algorithm.changed().items()
        if name in _MEANINGLESS
    )


def _l2(want: Array, have: Array) -> float:
    """The norm of the difference of a sample, mean over samples."""
    rows = (have.astype(np.float64) - want).reshape(len(want), -1)
    return float(np.sqrt(np.square(rows).sum(axis=1)).mean())


def _cosine(want: Array, have: Array) -> float:
    """1 less the cosine of the angle between the two outputs of a sample, mean over samples."""
    a, b = (array.astype(np.float64).reshape(len(array), -1) for array in (want, have))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(1 - (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)))


def _kl(want: Array, have: Array) -> float:
    """The Kullback-Leibler divergence of the Softmax of the two, over the last axis, mean over the others."""
    p, q = (_log_softmax(array.astype(np.float64)) for array in (want, have))
    return float((np.exp(p) * (p - q)).sum(axis=-1).mean())


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _minus_psnr(want: Array, have: Array) -> float:
    """Peak signal to noise ratio in dB, its negative: less is better."""
    error = float(np.square(have.astype(np.float64) - want).mean())
    peak = float(np.abs(want).max())
    return 10 * float(np.log10(max(error, np.finfo(np.float64).tiny) / max(peak, np.finfo(np.float64).tiny) ** 2))


_DISTANCES: dict[str, Callable[[Any, Any], float]] = {"l2": _l2, "cosine": _cosine, "kl": _kl, "psnr": _minus_psnr}
