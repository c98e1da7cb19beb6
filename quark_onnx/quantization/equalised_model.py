"""Cross-layer equalisation of the float model, checked on data: what moves its outputs is undone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from quark.onnx.calibration.reader import Batch
from quark.onnx.graph.equalise import PairReport, equalise
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference import Engine, alike
from quark.onnx.quantization.config.algorithm import CLEConfig
from quark.onnx.report.end_to_end import outputs_of

__all__ = ["Equalised", "equalised_model"]

_LOG = logging.getLogger(__name__)
_MOVED = "undone: with it, the outputs of the float model are off by more than rounding"


@dataclass(frozen=True, eq=False)
class Equalised:
    """A float model after equalisation.

    Attributes:
        model: the one to quantize.
        pairs: of layers, with what was done to them.
        twins: tensors that were not there before, and for each the one whose spec it takes.
        warnings: were logged too.
    """

    model: onnx.ModelProto
    pairs: tuple[PairReport, ...]
    twins: Mapping[str, str]
    warnings: tuple[str, ...]


def equalised_model(
    model: onnx.ModelProto, quantized: Collection[str], config: CLEConfig, batch: Batch, engine: Engine
) -> Equalised:
    """Equalise, unless it moves the outputs.

    Args:
        model: a prepared float model; not changed.
        quantized: the nodes that will be quantized.
        batch: the first of the calibration data. Models that it does not fit, or whose outputs are random or no
            tensors, are not compared.
    """
    result, pairs = equalise(model, quantized, config)
    warnings: tuple[str, ...] = ()
    if all(pair.reason for pair in pairs):
        warnings = (f"CLEConfig has no effect: {_why_not(pairs)}",)
    elif not _computes_the_same(model, result, batch, engine):
        warnings = (f"cross-layer equalisation was {_MOVED}",)
        result = model
        pairs = tuple(
            pair if pair.reason else PairReport(head=pair.head, tail=pair.tail, channels=pair.channels, reason=_MOVED)
            for pair in pairs
        )
    for line in warnings:
        _LOG.warning(line)
    known = {node.name for node in model.graph.node}
    bounds = [node for node in result.graph.node if node.name not in known]  # Min behind what was a Clip
    return Equalised(result, pairs, {node.input[0]: node.output[0] for node in bounds}, warnings)


def _why_not(pairs: tuple[PairReport, ...]) -> str:
    if not pairs:
        return "no two layers follow each other"
    return "; ".join(f"{pair.head} -> {pair.tail}: {pair.reason}" for pair in pairs)


def _computes_the_same(model: onnx.ModelProto, equalised: onnx.ModelProto, batch: Batch, engine: Engine) -> bool:
    if any(map(is_random, model.graph.node)):
        return True
    try:
        wanted = outputs_of(model, [batch], engine, fuse_qdq=False)[0]
    except Exception:  # onnxruntime's exceptions have no base of their own; calibration says what is wrong
        return True
    have = outputs_of(equalised, [batch], engine, fuse_qdq=False)[0]
    return all(alike(a, b) for a, b in zip(wanted, have, strict=True) if isinstance(a, np.ndarray))
