"""The data of the layers: what the quantized graph feeds each, and what the float graph makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.fast_finetune.float_layers import FloatLayer
from quark.onnx.fast_finetune.kept_samples import KeptSamples
from quark.onnx.fast_finetune.walk import Arrays, Walk
from quark.onnx.graph.live_bytes import live_bytes
from quark.onnx.inference.sessions import Engine, in_order
from quark.onnx.plan.types import LayerPlan

__all__ = ["LayerBatches", "LayerData", "TwoGraphs", "WalkOptions"]

_Result = TypeVar("_Result")
_MOST_GROWTH = 24 << 20  # bytes of all samples, for which a walk runs no node twice


@dataclass(frozen=True, eq=False)
class TwoGraphs:
    """What layers are finetuned on.

    Attributes:
        float_model, quantized: the graphs; of the quantized one integer initializers change, in place.
        samples: the calibration data of both.
        engine: for all that runs at the same time.
    """

    float_model: onnx.ModelProto
    quantized: onnx.ModelProto
    samples: KeptSamples
    engine: Engine


@dataclass(frozen=True, kw_only=True)
class WalkOptions:
    """How layers get their data.

    Attributes:
        float_first: all that the float graph gives is computed before the first layer is solved, and kept (memory
            level 0); not with `parallel`.
        float_inputs: layers get the float graph's inputs too, which solvers mix in; not with `parallel`.
        parallel: every layer sees the quantized model as it is now, and all are solved at the same time, each towards
            its own float layer's output for what it sees: were it the float graph's, each would make up for the errors
            that those before it make up for too. Otherwise each sees the outputs of the layers before it as they are
            after finetuning, and makes up for what they leave.
        keep_samples: the data is needed again; else it is used up.
    """

    float_first: bool = False
    float_inputs: bool = False
    parallel: bool = False
    keep_samples: bool = False


@dataclass(frozen=True, eq=False)
class LayerData:
    """A batch of a layer.

    Attributes:
        x: what the quantized graph feeds it.
        y: the float graph's output; with float layers of their own, theirs for x.
        x_float: what the float graph feeds it, where solvers mix it in (`drop_ratio`).
    """

    x: NDArray[np.generic]
    y: NDArray[np.float32]
    x_float: NDArray[np.float32] | None


class LayerBatches:
    """Walks both graphs from layers to layers. Batches are computed several at a time and come in order.

    Args:
        graphs: layers see the outputs of the quantized layers before them with the initializers of the moment.
        stops: the layers whose data is wanted at each step: one layer after the other, or all at once.
        outputs: tensors of the quantized graph that `outputs` will be asked for.
        float_layers: of the layers of the only stop, where targets are to be theirs. Then the float graph is not run.

    Raises:
        FinetuneError: onnxruntime cannot run a segment of a graph.
    """

    def __init__(
        self,
        graphs: TwoGraphs,
        stops: Sequence[Sequence[LayerPlan]],
        options: WalkOptions,
        *,
        outputs: tuple[str, ...] = (),
        float_layers: Sequence[FloatLayer] = (),
    ) -> None:
        samples = graphs.samples
        self._stops, self._batches, self._outputs = stops, samples.batches, outputs
        self._float_inputs, self._float_layers = options.float_inputs, float_layers
        each_bytes = live_bytes(graphs.float_model) * samples.samples / samples.batches
        self._at_once, each = graphs.engine.shared_out(samples.batches, each_bytes)
        targets = [[name for layer in layers for name in self._float_tensors(layer)] for layers in stops]
        inputs = [[layer.input.tensor for layer in layers] for layers in stops]
        growth, store = _MOST_GROWTH / samples.samples, samples.store
        self._float = Walk("float", graphs.float_model, targets, store, each, most_growth=growth)
        self._quantized = Walk("quantized", graphs.quantized, [*inputs, outputs], store, each, most_growth=growth)
        for batch in range(samples.batches):
            arrays = samples.load(batch)
            for walk in (self._quantized,) if float_layers else (self._float, self._quantized):
                walk.put_inputs(batch, {name: arrays[name] for name in walk.dataflow.inputs})
            if not options.keep_samples:
                samples.drop(batch)
        self._store = store
        self._kept = [self._kept_targets(stop) for stop in range(len(stops))] if options.float_first else None

    def of(self, stop: int) -> Iterator[list[LayerData]]:
        """The data of each layer of a stop, batch by batch; to be asked for in order.

        Raises:
            FinetuneError: onnxruntime cannot run a segment of a graph.
        """
        layers = self._stops[stop]
        if self._float_layers:
            yield from self._in_order(self._of_float_layers(self._quantized.advance().run, layers))
            return
        targets = self._float.advance().run if self._kept is None else self._kept[stop]
        inputs = self._quantized.advance().run

        def data(batch: int) -> list[LayerData]:
            x, of_float = inputs(batch), targets(batch)

            def given(name: str) -> NDArray[np.float32]:
                return of_float[name].astype(np.float32, copy=False)

            return [
                LayerData(
                    x[layer.input.tensor],
                    given(layer.target),
                    given(layer.float_input) if self._float_inputs else None,
                )
                for layer in layers
            ]

        yield from self._in_order(data)

    def _of_float_layers(
        self, inputs: Callable[[int], Arrays], layers: Sequence[LayerPlan]
    ) -> Callable[[int], list[LayerData]]:
        def data(batch: int) -> list[LayerData]:
            arrays = inputs(batch)
            xs = [arrays[layer.input.tensor] for layer in layers]
            return [LayerData(x, own.output(x), None) for x, own in zip(xs, self._float_layers, strict=True)]

        return data

    def _float_tensors(self, layer: LayerPlan) -> tuple[str, ...]:
        return (layer.target, layer.float_input) if self._float_inputs else (layer.target,)

    def outputs(self) -> Iterator[Arrays]:
        """The outputs of the quantized model as it is now, batch by batch; only what is behind the last stop is run.

        Raises:
            FinetuneError: onnxruntime cannot run the rest of the graph.
        """
        return self._in_order(self._quantized.ahead(self._outputs).run)

    def _kept_targets(self, stop: int) -> Callable[[int], Arrays]:
        """Takes what the float graph gives at a stop out of the store again, batch by batch."""
        graph, names = f"float {stop}", tuple[str, ...]()
        for batch, arrays in enumerate(self._in_order(self._float.advance().run)):
            names = tuple(arrays)
            for name, array in arrays.items():
                self._store.put((graph, name, batch), array)

        def taken(batch: int) -> Arrays:
            arrays = {name: self._store.get((graph, name, batch)) for name in names}
            for name in names:
                self._store.drop((graph, name, batch))
            return arrays

        return taken

    def _in_order(self, run: Callable[[int], _Result]) -> Iterator[_Result]:
        return in_order(run, range(self._batches), threads=self._at_once)
