"""The data of the layers: what the quantized graph feeds each, and what the float graph makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.fast_finetune.samples import KeptSamples
from quark.onnx.fast_finetune.walk import Arrays, Walk
from quark.onnx.inference import Engine, in_order
from quark.onnx.plan.types import LayerPlan

__all__ = ["LayerBatches", "LayerData"]

_Result = TypeVar("_Result")
LayerData = tuple[NDArray[np.generic], NDArray[np.float32]]


class LayerBatches:
    """Walks both graphs from layers to layers. Batches are computed several at a time and come in order.

    Args:
        quantized: layers see the outputs of the layers before them with the initializers of the moment.
        stops: the layers whose data is wanted at each step: one layer after the other, or all at once.
        samples: the calibration data; used up.
        engine: for all that runs at the same time.
        float_first: compute all float targets before the first layer, and keep them (memory level 0).
        outputs: tensors of the quantized graph that `outputs` will be asked for.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """

    def __init__(
        self,
        float_model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        stops: Sequence[Sequence[LayerPlan]],
        samples: KeptSamples,
        engine: Engine,
        *,
        float_first: bool,
        outputs: tuple[str, ...] = (),
    ) -> None:
        self._stops, self._batches, self._outputs = stops, samples.batches, outputs
        self._at_once, each = engine.shared_out(samples.batches)
        targets = [[layer.target for layer in layers] for layers in stops]
        inputs = [[layer.input.tensor for layer in layers] for layers in stops]
        self._float = Walk("float", float_model, targets, samples.store, each)
        self._quantized = Walk("quantized", quantized, [*inputs, outputs], samples.store, each)
        for batch in range(samples.batches):
            arrays = samples.load(batch)
            for walk in (self._float, self._quantized):
                walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
            samples.drop(batch)
        self._kept = [self._kept_targets() for _ in stops] if float_first else None

    def of(self, stop: int) -> Iterator[list[LayerData]]:
        """(input, float target) of each layer of a stop, batch by batch; to be asked for in order.

        Raises:
            FinetuneError: onnxruntime cannot run a segment of a graph.
        """
        layers = self._stops[stop]
        targets = self._float.advance().run if self._kept is None else self._kept[stop]
        inputs = self._quantized.advance().run

        def data(batch: int) -> list[LayerData]:
            x, y = inputs(batch), targets(batch)
            return [(x[layer.input.tensor], y[layer.target].astype(np.float32, copy=False)) for layer in layers]

        yield from self._in_order(data)

    def outputs(self) -> Iterator[Arrays]:
        """The outputs of the quantized model as it is now, batch by batch; only what is behind the last stop is run.

        Raises:
            FinetuneError: onnxruntime cannot run the rest of the graph.
        """
        return self._in_order(self._quantized.ahead(self._outputs).run)

    def _kept_targets(self) -> Callable[[int], Arrays]:
        arrays = dict(enumerate(self._in_order(self._float.advance().run)))
        return arrays.pop

    def _in_order(self, run: Callable[[int], _Result]) -> Iterator[_Result]:
        return in_order(run, range(self._batches), threads=self._at_once)
