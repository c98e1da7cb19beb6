"""Cross-layer equalisation of the float model, checked on data: what moves its outputs is undone."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx

from quark.onnx.calibration_data.checked_items import Batch
from quark.onnx.config.algorithm import CLEConfig
from quark.onnx.errors import DataError, ModelError
from quark.onnx.inference.sessions import Engine
from quark.onnx.layers.equalise import PairReport, equalise
from quark.onnx.preparation.same_outputs import Reference, few_samples

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

    @property
    def is_changed(self) -> bool:
        """Whether any pair is equalised."""
        return any(not pair.reason for pair in self.pairs)

    def undone(self, model: onnx.ModelProto, why: str) -> Equalised:
        """Without equalisation; logged as a warning.

        Args:
            model: as it was given.
            why: for the report of each pair that was equalised.
        """
        warning = f"cross-layer equalisation was {why}"
        _LOG.warning(warning)
        pairs = tuple(
            pair if pair.reason else PairReport(head=pair.head, tail=pair.tail, channels=pair.channels, reason=why)
            for pair in self.pairs
        )
        return Equalised(model, pairs, {}, (*self.warnings, warning))


def equalised_model(
    model: onnx.ModelProto, quantized: Collection[str], config: CLEConfig, batch: Batch, engine: Engine
) -> Equalised:
    """Equalise, unless it moves the outputs.

    Args:
        model: a prepared float model; not changed.
        quantized: the nodes that will be quantized.
        batch: the first of the calibration data. Models that it does not fit are not compared.
    """
    result, pairs = equalise(model, quantized, config)
    known = {node.name for node in model.graph.node}
    bounds = [node for node in result.graph.node if node.name not in known]  # Min behind what was a Clip
    found = Equalised(result, pairs, {node.input[0]: node.output[0] for node in bounds}, ())
    if not found.is_changed:
        warning = f"CLEConfig has no effect: {_why_not(pairs)}"
        _LOG.warning(warning)
        return replace(found, warnings=(warning,))
    return found if _computes_the_same(model, result, batch, engine) else found.undone(model, _MOVED)


def _why_not(pairs: tuple[PairReport, ...]) -> str:
    if not pairs:
        return "no two layers follow each other"
    return "; ".join(f"{pair.head} -> {pair.tail}: {pair.reason}" for pair in pairs)


def _computes_the_same(model: onnx.ModelProto, equalised: onnx.ModelProto, batch: Batch, engine: Engine) -> bool:
    try:
        reference = Reference(model, [few_samples(model, batch)], engine)
    except (ModelError, DataError):  # calibration says what is wrong
        return True
    return not reference.difference(equalised)
