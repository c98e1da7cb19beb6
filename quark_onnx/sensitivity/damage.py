"""The error that quantizing some of a model's activations makes at its outputs, everything else in float."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import onnx

from quark.onnx.calibration_data.checked_items import sample_count
from quark.onnx.graph.joined_outputs import joined_outputs
from quark.onnx.graph.live_bytes import live_bytes
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Batch, Engine, in_order, session
from quark.onnx.measures.deviation import Comparison, Deviation, Parts
from quark.onnx.sensitivity.switched_model import Switch, switched_model
from quark.onnx.whole_model.part_masks import PartMasks

__all__ = ["Damage"]


class Damage:
    """Measures sets of activation quantizers by running the float model with them on.

    Args:
        model: the float model.
        quantized: the Q/DQ model that was made from it.
        items: the data; a few samples are enough, as errors are compared that differ much.
        engine: runs the models.

    Attributes:
        switches: what can be turned on, in graph order.
        elements: of each switch by name: how many values go through it, over all items.
        samples: of all items.

    Raises:
        ModelError: onnxruntime cannot load the model.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: onnx.ModelProto, items: Sequence[Batch], engine: Engine
    ) -> None:
        self._switched = switched_model(model, quantized)
        self._items = items
        self._at_once, each = engine.shared_out(len(items), live_bytes(model) * max(map(sample_count, items)))
        self._session = session(self._switched.model, each)
        self.switches = self._switched.switches
        self._joined = joined_outputs(model)
        names = [name for switch in self.switches for name in switch.sizes]
        outputs, off = list(self._switched.outputs), self._switched.feeds(frozenset())
        found = [self._session.run([*outputs, *names], {**item, **off}) for item in items]
        self._float = [values[: len(outputs)] for values in found]
        sizes = [dict(zip(names, map(int, values[len(outputs) :]), strict=True)) for values in found]
        self.samples = sum(map(sample_count, items))
        self.elements = {
            switch.name: sum(size[name] for size in sizes for name in switch.sizes) for switch in self.switches
        }
        self._parts = self._masks(model, each)
        self._known: dict[frozenset[str], Deviation] = {}

    def deviation(self, on: Iterable[Switch]) -> Deviation:
        """How far the outputs are from the float model's with these quantizers on."""
        names = frozenset(switch.name for switch in on)
        if names not in self._known:
            comparison = Comparison(self._switched.outputs)
            feeds = self._switched.feeds(names)
            outputs = list(self._switched.outputs)
            runs = in_order(
                lambda item: self._session.run(outputs, {**item, **feeds}), self._items, threads=self._at_once
            )
            for want, have, parts in zip(self._float, runs, self._parts, strict=True):
                comparison.add(want, have, parts)
            self._known[names] = comparison.deviation()
        return self._known[names]

    def error(self, on: Iterable[Switch]) -> float:
        """Mean squared error over the variance of the float values, of the output (or part) that suffers most."""
        found = self.deviation(on)
        parts = [part.error for output in found.outputs for part in output.parts or (output,)]
        return max((error for error in parts if not math.isnan(error)), default=0.0)

    def _masks(self, model: onnx.ModelProto, engine: Engine) -> list[dict[int, Parts]]:
        """Which elements of the outputs that join several tensors come from which, by item."""
        joined = joined_outputs(model)
        sources = sorted({name for one in joined.values() for name in one.sources})
        if not sources:
            return [{} for _ in self._items]
        exposed, masks = ExposedTensors(model, sources, engine), PartMasks(joined, engine)
        known = (exposed(item) for item in self._items)
        return [masks.of({name: values[name].shape for name in sources}) for values in known]
