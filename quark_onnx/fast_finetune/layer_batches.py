"""The data of one layer after the other: what the quantized graph feeds it, and what the float graph makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.fast_finetune.samples import KeptSamples
from quark.onnx.fast_finetune.walk import Walk
from quark.onnx.inference import Engine, in_order
from quark.onnx.plan.types import Plan

__all__ = ["LayerBatches"]

_Target = Callable[[int], NDArray[np.generic]]
_Result = TypeVar("_Result")


class LayerBatches:
    """Walks both graphs from layer to layer. Batches are computed several at a time and come in order.

    Args:
        quantized: each layer sees the outputs of the layers before it with the initializers of that moment.
        samples: the calibration data; used up.
        engine: for all that runs at the same time.
        float_first: compute all float targets before the first layer, and keep them (memory level 0).

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """

    def __init__(
        self,
        float_model: onnx.ModelProto,
        quantized: onnx.ModelProto,
        plan: Plan,
        samples: KeptSamples,
        engine: Engine,
        *,
        float_first: bool,
    ) -> None:
        self._plan, self._batches = plan, samples.batches
        self._at_once, each = engine.shared_out(samples.batches)
        targets = [[layer.target] for layer in plan.layers]
        inputs = [[layer.input.tensor] for layer in plan.layers]
        self._float = Walk("float", float_model, targets, samples.store, each)
        self._quantized = Walk("quantized", quantized, inputs, samples.store, each)
        for batch in range(samples.batches):
            arrays = samples.load(batch)
            for walk in (self._float, self._quantized):
                walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
            samples.drop(batch)
        self._kept = [self._kept_target(layer.target) for layer in plan.layers] if float_first else None

    def of(self, index: int) -> Iterator[tuple[NDArray[np.generic], NDArray[np.float32]]]:
        """(input, float target) of the plan's index-th layer, batch by batch; to be asked for in the plan's order.

        Raises:
            FinetuneError: onnxruntime cannot run a segment of a graph.
        """
        layer = self._plan.layers[index]
        target = self._target(layer.target) if self._kept is None else self._kept[index]
        step = self._quantized.advance()
        yield from self._in_order(
            lambda batch: (step.run(batch)[layer.input.tensor], target(batch).astype(np.float32, copy=False))
        )

    def _target(self, tensor: str) -> _Target:
        step = self._float.advance()
        return lambda batch: step.run(batch)[tensor]

    def _kept_target(self, tensor: str) -> _Target:
        arrays = dict(enumerate(self._in_order(self._target(tensor))))
        return arrays.pop

    def _in_order(self, run: Callable[[int], _Result]) -> Iterator[_Result]:
        return in_order(run, range(self._batches), threads=self._at_once)
