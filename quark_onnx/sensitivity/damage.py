"""The error that quantizing some activations and weights makes at a model's outputs, everything else in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import sample_count
from quark.onnx.graph.live_bytes import live_bytes
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine
from quark.onnx.measures.deviation import Comparison, Deviation
from quark.onnx.sensitivity.element_counts import element_counts
from quark.onnx.sensitivity.staged_model import StagedModel
from quark.onnx.sensitivity.switched_model import Switch, switched_model
from quark.onnx.sensitivity.weight_switch import WeightSwitch, weights_as_inputs
from quark.onnx.system.freed_memory import return_much
from quark.onnx.whole_model.part_masks import masks_of_items

__all__ = ["Damage"]

_TOGETHER_BYTES = 96 << 20  # of the tensors of items that pass the stages of the model together


class Damage:
    """Measures sets of quantizers by running the float model with them on.

    Args:
        model: the float model.
        quantized: the Q/DQ model that was made from it.
        items: the data; a few samples are enough, as errors are compared that differ much.
        engine: runs the models.
        weights: the layers whose weights can be quantized too.

    Attributes:
        switches: activation quantizers that can be turned on, in graph order.
        samples: of all items.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        items: Sequence[Batch],
        engine: Engine,
        weights: Sequence[WeightSwitch] = (),
    ) -> None:
        self._weights = tuple(weights)
        self._switched = switched_model(weights_as_inputs(model, weights), quantized)
        self._items = items
        each_bytes = live_bytes(model) * max(map(sample_count, items))
        at_once, each = engine.shared_out(len(items), each_bytes)
        self.switches = self._switched.switches
        self._model, self._engine = model, each
        self.samples = sum(map(sample_count, items))
        off = dict(self._switched.off)
        for switch in weights:
            off |= switch.values(frozenset(), frozenset())
        together = max(1, int(_TOGETHER_BYTES / max(each_bytes, 1)))
        self._staged = StagedModel(self._switched, off, items, each, threads=at_once, together=together)
        self._float = self._staged.real
        self._parts = masks_of_items(model, items, each)
        self._known: dict[tuple[frozenset[str], frozenset[str], int], Comparison] = {}  # by how many items, too
        self._whole: tuple[frozenset[str], list[list[Any]]] | None = None  # the outputs with these on, for `expected`

    @cached_property
    def elements(self) -> dict[str, int]:
        """How many values go through each switch, over all items, by its name."""
        names = [name for switch in self.switches for name in switch.tensors]
        sizes = element_counts(self._model, names, self._items, self._engine)
        return {switch.name: sum(sizes[name] for name in switch.tensors) for switch in self.switches}

    def deviation(self, on: Iterable[Switch | WeightSwitch], fine: Iterable[Switch | WeightSwitch] = ()) -> Deviation:
        """How far the outputs are from the float model's with these quantizers on.

        Args:
            fine: those of them that are as fine as they may be with the same range, or the same bits (`Switch.fine`,
                `WeightSwitch.fine`).
        """
        return self._comparison(on, fine).deviation()

    def sample_errors(
        self, on: Iterable[Switch | WeightSwitch], fine: Iterable[Switch | WeightSwitch] = ()
    ) -> NDArray[np.float64]:
        """The error of every sample, or item; their mean is that of `deviation`."""
        return self._comparison(on, fine).sample_errors()

    def _comparison(
        self,
        on: Iterable[Switch | WeightSwitch],
        fine: Iterable[Switch | WeightSwitch] = (),
        items: int | None = None,
    ) -> Comparison:
        names, finer = (frozenset(switch.name for switch in switches) for switches in (on, fine))
        count = len(self._items) if items is None else min(items, len(self._items))
        known = names, finer, count
        if known not in self._known:
            self._known[known] = self._compared(self._runs(names, finer, count), count)
        return self._known[known]

    def expected(self, switch: Switch | WeightSwitch, on: Iterable[Switch | WeightSwitch]) -> Deviation:
        """How far the outputs should be with these quantizers on but for one of them, by what that does alone: its own
        error is taken from theirs, element by element, as if errors added up. Besides `deviation` of it alone is known.
        """
        names, alone = frozenset(one.name for one in on), frozenset((switch.name,))
        if self._whole is None or self._whole[0] != names:
            self._whole = names, list(self._runs(names, frozenset()))
        both = [Comparison(self._switched.outputs), Comparison(self._switched.outputs)]
        runs = self._runs(alone, frozenset())
        for real, own, whole, parts in zip(self._float, runs, self._whole[1], self._parts, strict=True):
            both[0].add(real, own, parts)
            both[1].add(real, [_without(*arrays) for arrays in zip(whole, own, real, strict=True)], parts)
        self._known[alone, frozenset(), len(self._items)] = both[0]
        return both[1].deviation()

    def _runs(self, on: frozenset[str], fine: frozenset[str], items: int | None = None) -> Iterator[list[Any]]:
        """The outputs, item by item, of so many items."""
        feeds = self._switched.feeds(on, fine)
        for switch in self._weights:
            if switch.name in on:
                feeds |= switch.values(on, fine)
        return self._staged.run(feeds, items)

    def _compared(self, runs: Iterable[Sequence[Any]], items: int | None = None) -> Comparison:
        comparison = Comparison(self._switched.outputs)
        for want, have, parts in zip(self._float[:items], runs, self._parts[:items], strict=True):
            comparison.add(want, have, parts)
        return_much()
        return comparison

    def deviation_of(self, run: ExposedTensors, outputs: Sequence[str]) -> Deviation:
        """How far another model's outputs, in the same order, are from the float model's."""
        found = (run(item) for item in self._items)
        return self._compared([values[name] for name in outputs] for values in found).deviation()

    def error(self, on: Iterable[Switch | WeightSwitch], items: int | None = None) -> float:
        """Mean squared error over the variance of the float values, of the output (or part) that suffers most; over so
        many items, the first ones, or all.
        """
        found = self._comparison(on, items=items).deviation()
        parts = [part.error for output in found.outputs for part in output.parts or (output,)]
        return max((error for error in parts if not math.isnan(error)), default=0.0)


def _without(whole: Any, own: Any, real: Any) -> Any:
    """An output less the error of one quantizer; what is no tensor of floats, or has another shape, as it is."""
    floats = isinstance(real, np.ndarray) and real.dtype.kind == "f" and whole.shape == own.shape == real.shape
    return whole - (own - real) if floats else whole
