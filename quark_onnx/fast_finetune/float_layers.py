"""Layers of the float model alone, run on what the quantized graph feeds them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.core_view.normalized_input import NormalizedInput
from quark.onnx.errors import FinetuneError
from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.plan.types import LayerPlan

__all__ = ["FloatLayer", "float_layers"]


class FloatLayer:
    """The nodes of the float graph from a layer's input to its target, with the float weight and bias.

    Args:
        graph: of the float model.
        engine: of one run; several threads may run a layer at the same time.
    """

    def __init__(self, graph: Dataflow, layer: LayerPlan, engine: Engine) -> None:
        self._graph, self._layer, self._engine = graph, layer, engine
        nodes = tuple(graph.ancestors([layer.target], [layer.float_input]))
        self._segment = Segment(nodes, (layer.float_input,), (layer.target,))
        _ = self._session  # opened before threads ask for it

    @cached_property
    def _session(self) -> ort.InferenceSession:
        layer = self._layer
        try:
            model = self._graph.segment_model(self._segment, {layer.float_input: onnx.TensorProto.FLOAT})
            return session(model, self._engine)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise FinetuneError(f"onnxruntime cannot run the float layer {layer.node!r} alone: {error}") from error

    def output(self, x: NDArray[np.generic]) -> NDArray[np.float32]:
        """The float layer's output for what the quantized graph feeds the layer, 8-bit or float.

        Raises:
            FinetuneError: onnxruntime cannot run it.
        """
        layer = self._layer
        try:
            (y,) = self._session.run([layer.target], {layer.float_input: _real(x, layer)})
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            raise FinetuneError(f"onnxruntime cannot run the float layer {layer.node!r} alone: {error}") from error
        found: NDArray[np.float32] = y.astype(np.float32, copy=False)
        return found


def float_layers(model: onnx.ModelProto, layers: Sequence[LayerPlan], engine: Engine) -> list[FloatLayer]:
    """The layers of a float model that a plan's layers are to come close to."""
    graph = Dataflow(model)
    return [FloatLayer(graph, layer, engine) for layer in layers]


def _real(x: NDArray[np.generic], layer: LayerPlan) -> NDArray[np.float32]:
    """What DequantizeLinear makes of x; floats as they are."""
    if x.dtype not in (np.uint8, np.int8):
        return x.astype(np.float32, copy=False)
    source = layer.arrangement
    scale, zero_point = (
        (source.x_scale, source.x_zero_point)
        if isinstance(source, NormalizedInput)
        else (layer.input.scale, layer.input.zero_point)
    )
    return (x.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
