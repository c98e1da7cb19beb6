"""Measure every quantized layer against the float model: its input, its output, and what it does alone."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.graph.dataflow import Dataflow, Segment
from quark.onnx.inference.sessions import ROOM, Engine, batch_is_free, session
from quark.onnx.layers.weight_layers import weight_layers
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.plan.types import LayerPlan
from quark.onnx.system.freed_memory import return_much
from quark.onnx.whole_model.tensors_in_turn import TensorsInTurn

__all__ = ["layer_errors", "layer_errors_or_note"]

_LOG = logging.getLogger(__name__)
_SAMPLES, _LARGE_SAMPLES = 8, 2  # what a layer does shows in few of them, as each has many positions
_MOST_BYTES = 96 << 20  # of the float model's tensors, of a sample; large images are measured some layers at a time,
_PART = 3  # with a part of that many bytes, as there are four tensors for each of the float model's
_WEIGHT_BYTES = 64 << 20  # of float weights of layers that are measured at a time: sessions take several times as much
_BITS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16}

_Values = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class _Pair:
    """A layer of the quantized model, and the tensors of the float model that feed it and that it should give.

    Attributes:
        entry: the tensor of the quantized model that the layer, its input's quantizer included, starts from.
        nodes: that quantizer, if there is one, and the layer.
        data: the tensor that the layer's node reads.
        weight_bytes: of its weight as floats.
    """

    node: onnx.NodeProto
    float_input: str
    float_output: str
    entry: str
    nodes: tuple[onnx.NodeProto, ...]
    data: str
    weight_bytes: int

    @property
    def output(self) -> str:
        return str(self.node.output[0])


def layer_errors(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    batches: Iterable[Batch],
    engine: Engine,
    layers: Sequence[LayerPlan] = (),
) -> tuple[LayerError, ...]:
    """The error of every quantized layer, and its parts, on the first samples.

    Args:
        float_model: as it was when it was quantized: prepared, and equalised if it was.
        quantized: the Q/DQ model.
        batches: inputs of the models; the first eight samples are taken, one at a time where the models take any
            number, so that the tensors of one sample are in memory; where these are large, those of some layers, and
            two samples. Where weights are large, some layers are measured at a time.
        layers: of a plan, where node names alone do not say which layers belong together.

    Raises:
        ModelError: onnxruntime cannot load a model.
    """
    graph = Dataflow(quantized)
    pairs = list(_pairs(float_model, graph, layers))
    if not pairs:
        return ()
    floats, sums = Dataflow(float_model), {pair.node.name: _Sums() for pair in pairs}
    is_large = sum(_tensor_bytes(pair, floats) for pair in pairs) > _MOST_BYTES
    groups = list(_together(pairs, floats, _MOST_BYTES / _PART if is_large else _MOST_BYTES))
    most = _LARGE_SAMPLES if is_large else _SAMPLES
    few = list(_first_samples(batches, divisible=batch_is_free(float_model), most=most))
    wanted = [[name for pair in group for name in (pair.float_input, pair.float_output)] for group in groups]
    given = [[name for pair in group for name in (pair.data, pair.output)] for group in groups]
    run_float, run_quantized = TensorsInTurn(floats, wanted, engine), TensorsInTurn(graph, given, engine)
    for group, truths, found in zip(groups, run_float(few), run_quantized(few), strict=True):
        alone = _Alone(group, graph, engine)
        for truth, values in zip(truths, found, strict=True):
            _add(group, sums, truth, values, alone)
            return_much()
    samples = sum(map(sample_count, few))
    return tuple(_layer_error(pair, graph, sums[pair.node.name], samples) for pair in pairs)


def _together(pairs: Sequence[_Pair], floats: Dataflow, most_bytes: float) -> Iterator[list[_Pair]]:
    """The pairs in groups whose tensors may be in memory at the same time."""
    group, held, weights = list[_Pair](), 0.0, 0
    for pair in pairs:
        size = _tensor_bytes(pair, floats)
        if group and (held + size > most_bytes or weights + pair.weight_bytes > _WEIGHT_BYTES):
            yield group
            group, held, weights = [], 0.0, 0
        group.append(pair)
        held, weights = held + size, weights + pair.weight_bytes
    yield group


def _tensor_bytes(pair: _Pair, floats: Dataflow) -> float:
    """The bytes of a sample's tensors at both ends of a layer, as far as the model tells its shapes."""
    sizes = (floats.bytes_per_sample(name) for name in (pair.float_input, pair.float_output))
    return sum(size for size in sizes if not math.isnan(size))


def _add(pairs: Sequence[_Pair], sums: Mapping[str, _Sums], truth: _Values, values: _Values, alone: _Alone) -> None:
    """A batch, from the tensors of the float model and those of the quantized one."""
    own = alone(truth)
    for pair in pairs:
        of_layer, want = sums[pair.node.name], truth[pair.float_output]
        of_layer.inherited.add(truth[pair.float_input], values[pair.data])
        of_layer.total.add(want, values[pair.output])
        of_layer.own.add(want, own[pair.node.name, True])
        of_layer.weights.add(want, own[pair.node.name, False])


def layer_errors_or_note(
    float_model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    batches: Iterable[Batch],
    engine: Engine,
    layers: Sequence[LayerPlan] = (),
) -> tuple[tuple[LayerError, ...], tuple[str, ...]]:
    """`layer_errors` of a run whose model is complete: what goes wrong here is a note in the report."""
    if engine.memory.free() < ROOM:
        return (), ("the layers were not compared one by one: too little memory is free",)
    try:
        return layer_errors(float_model, quantized, batches, engine, layers), ()
    except Exception as error:  # whatever it is: nothing of the caller's runs here
        note = f"the layers were not compared one by one: {type(error).__name__}: {error}"
        _LOG.info(note)
        return (), (note,)


class _Noise:
    """Noise over signal, in float64 sums."""

    def __init__(self) -> None:
        self._noise, self._signal = 0.0, 0.0

    def add(self, want: NDArray[np.generic], have: NDArray[np.generic] | None) -> None:
        """A tensor of one batch; None, or another shape, cannot be compared."""
        if have is None or have.shape != want.shape or want.dtype.kind != "f":
            self._noise = math.nan
            return
        # Not by BLAS, whose threads would take turns with those of onnxruntime.
        self._signal += float(np.square(want, dtype=np.float64).sum())
        self._noise += float(np.square(np.subtract(have, want), dtype=np.float64).sum())

    @property
    def share(self) -> float:
        return self._noise / self._signal if self._signal > 0 and math.isfinite(self._noise) else math.nan


class _Sums:
    def __init__(self) -> None:
        self.inherited, self.total, self.own, self.weights = _Noise(), _Noise(), _Noise(), _Noise()


class _Alone:
    """All quantized layers side by side, each fed with the float model's values, with and without the quantizer of its
    input.
    """

    def __init__(self, pairs: Sequence[_Pair], graph: Dataflow, engine: Engine) -> None:
        self._pairs, self._graph, self._engine = pairs, graph, engine
        self._keys = [(pair.node.name, quantizes) for pair in pairs for quantizes in (True, False)]
        self._session: ort.InferenceSession | None = None

    def __call__(self, truth: _Values) -> Mapping[tuple[str, bool], NDArray[np.generic]]:
        """The output of each layer, by its node's name and whether its input was quantized."""
        feed = {f"{pair.node.name}:float": truth[pair.float_input] for pair in self._pairs}
        if self._session is None:
            self._session = session(self._model(feed), self._engine)
        return dict(zip(self._keys, self._session.run(None, feed), strict=True))

    def _model(self, feed: _Values) -> onnx.ModelProto:
        nodes, outputs = list[onnx.NodeProto](), list[str]()
        for pair in self._pairs:
            for start, chain in ((pair.entry, pair.nodes), (pair.data, pair.nodes[-1:])):
                prefix = f"{pair.node.name}:{len(outputs) % 2}:"
                nodes.extend(_renamed(chain, prefix, {start: f"{pair.node.name}:float"}, self._graph))
                outputs.append(prefix + pair.output)
        segment = Segment(tuple(nodes), tuple(feed), tuple(outputs))
        types = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feed.items()}
        return self._graph.segment_model(segment, types)


def _renamed(
    nodes: Sequence[onnx.NodeProto], prefix: str, start: Mapping[str, str], graph: Dataflow
) -> Iterator[onnx.NodeProto]:
    """Copies with tensors of their own; constants are shared."""
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = prefix + node.output[0]
        copy.input[:] = [start.get(name) or (name if graph.is_constant(name) else prefix + name) for name in node.input]
        copy.output[:] = [prefix + name if name else "" for name in node.output]
        yield copy


def _pairs(float_model: onnx.ModelProto, graph: Dataflow, layers: Sequence[LayerPlan]) -> Iterator[_Pair]:
    by_name = {layer.node_name: (layer.input, layer.output) for layer in weight_layers(float_model)}
    by_name.update({layer.node: (layer.float_input, layer.target) for layer in layers})
    for node in graph.model.graph.node:
        data = [name for name in node.input[:2] if not graph.is_constant(name)]
        if node.name not in by_name or len(data) != 1 or not _has_integers(node, graph):
            continue
        if any(name and not graph.is_constant(name) for name in node.input[2:]):
            continue  # a bias that is computed
        float_input, float_output = by_name[node.name]
        quantizer = _input_quantizer(data[0], graph)
        entry = quantizer[0].input[0] if quantizer else data[0]
        yield _Pair(node, float_input, float_output, entry, (*quantizer, node), data[0], _weight_bytes(node, graph))


def _input_quantizer(data: str, graph: Dataflow) -> tuple[onnx.NodeProto, ...]:
    """The QuantizeLinear and the DequantizeLinear that a layer's input comes through directly; none otherwise."""
    last = graph.producer.get(data)
    if last is None or last.op_type != "DequantizeLinear":
        return ()
    first = graph.producer.get(last.input[0])
    return (first, last) if first is not None and first.op_type == "QuantizeLinear" else ()


def _has_integers(node: onnx.NodeProto, graph: Dataflow) -> bool:
    return any(_quantized_weight(node, graph))


def _quantized_weight(node: onnx.NodeProto, graph: Dataflow) -> Iterator[onnx.NodeProto]:
    """The DequantizeLinear of its weight."""
    for name in node.input[:2]:
        before = graph.producer.get(name)
        if before is not None and before.op_type == "DequantizeLinear" and graph.is_constant(name):
            yield before


def _weight_bytes(node: onnx.NodeProto, graph: Dataflow) -> int:
    integers = graph.initializers.get(next(_quantized_weight(node, graph)).input[0])
    return 0 if integers is None else 4 * math.prod(integers.dims)


def _layer_error(pair: _Pair, graph: Dataflow, sums: _Sums, samples: int) -> LayerError:
    weight = next(_quantized_weight(pair.node, graph))
    integers, scale = (graph.initializers.get(name) for name in weight.input[:2])
    kind = "" if integers is None else onnx.TensorProto.DataType.Name(integers.data_type).lower()
    return LayerError(
        name=pair.node.name,
        op_type=pair.node.op_type,
        input=pair.float_input,
        weight_bits=_BITS.get(kind, 32),
        weight_scales=1 if scale is None else math.prod(scale.dims),
        inherited=sums.inherited.share,
        total=sums.total.share,
        own=sums.own.share,
        weights=sums.weights.share,
        samples=samples,
    )


def _first_samples(batches: Iterable[Batch], *, divisible: bool, most: int) -> Iterator[Batch]:
    seen = 0
    for batch in batches:
        count = sample_count(batch)
        if divisible and len({array.shape[:1] for array in batch.values()}) == 1:
            for index in range(min(count, most - seen)):
                yield {name: np.ascontiguousarray(array[index : index + 1]) for name, array in batch.items()}
        else:
            yield batch
        seen += count
        if seen >= most:
            return
