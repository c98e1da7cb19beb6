"""Cross-layer equalisation of the float model, checked on data: what moves its outputs is undone."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np
import onnx

from quark.onnx.calibration.reader import Batch
from quark.onnx.graph.dataflow import is_random
from quark.onnx.graph.equalise import PairReport, equalise
from quark.onnx.inference import Engine, alike
from quark.onnx.quantization.config.algorithm import CLEConfig
from quark.onnx.report.end_to_end import outputs_of

__all__ = ["equalised_model"]

_LOG = logging.getLogger(__name__)
_MOVED = "undone: with it, the outputs of the float model are off by more than rounding"


def equalised_model(
    model: onnx.ModelProto, quantized: Collection[str], config: CLEConfig, batch: Batch, engine: Engine
) -> tuple[onnx.ModelProto, tuple[PairReport, ...], tuple[str, ...]]:
    """The model to quantize in place of `model`, the pairs of layers, and warnings, which are logged too.

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
    return result, pairs, warnings


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
