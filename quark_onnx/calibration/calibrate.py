"""One streaming pass of the float model: the range of every activation, and the scale of every weight."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration.activation_range import ActivationRange
from quark.onnx.calibration.assumed_biases import bias_shifts
from quark.onnx.calibration.channel_blocks import session_in_blocks
from quark.onnx.calibration.swallowed import Sampled, swallowed
from quark.onnx.calibration.tensor_statistics import TensorStatistics
from quark.onnx.calibration.value_histogram import ValueHistogram
from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.calibration.weight_scale_search import WeightScaleSearch
from quark.onnx.calibration_data.checked_items import Batch, counts_samples, sample_count
from quark.onnx.calibration_data.joining import BatchJoiner, CanJoin, input_bytes
from quark.onnx.errors import DataError
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.inference.sessions import READY, Engine, in_order, session
from quark.onnx.layers.weight_layers import WeightLayer
from quark.onnx.qdq.weight_params import WeightParams
from quark.onnx.system.memory_limit import unless_out_of_memory

__all__ = ["Calibration", "CalibrationSettings", "calibrate"]

_EXPOSED_BYTES = 4 << 20  # of inner tensors that a batch makes; several batches are at work at the same time


@dataclass(frozen=True)
class CalibrationSettings:
    """How ranges and scales are chosen.

    Attributes:
        activations: how an activation's range follows from its values.
        weights: choose weight scales by output error on this grid; None: leave them alone.
        ranges: of the activations, by name, for which it is another one.
        grids: of the weights, by name, for which it is another one.
    """

    activations: ActivationRange
    weights: WeightGrid | None
    ranges: Mapping[str, ActivationRange] = field(default_factory=dict)
    grids: Mapping[str, WeightGrid | None] = field(default_factory=dict)

    def range_of(self, tensor: str) -> ActivationRange:
        """The range of an activation."""
        return self.ranges.get(tensor, self.activations)

    def grid_of(self, weight: str) -> WeightGrid | None:
        """The grid of a weight."""
        return self.grids.get(weight, self.weights)


@dataclass(frozen=True)
class Calibration:
    """What the pass found.

    Attributes:
        ranges: (lowest, highest) of each tensor that has a range.
        weights: parameters of each weight initializer whose scale was chosen.
        samples: how many were seen.
        without_range: why each of the other tensors has none: they are not quantized. Weights may be among them.
        histograms: of the values of tensors.
        bias_shifts: by bias initializer: what rounding the weight at the scale chosen adds to the mean output.
    """

    ranges: dict[str, tuple[float, float]]
    weights: dict[str, WeightParams]
    samples: int
    without_range: dict[str, str] = field(default_factory=dict)
    histograms: dict[str, ValueHistogram] = field(default_factory=dict)
    bias_shifts: dict[str, list[float]] = field(default_factory=dict)


def calibrate(
    model: onnx.ModelProto,
    items: Iterator[Batch],
    can_join: CanJoin,
    tensors: list[str],
    layers: Iterable[WeightLayer],
    settings: CalibrationSettings,
    engine: Engine,
) -> Calibration:
    """Run the float model over all items once; memory does not depend on how many there are.

    Args:
        can_join: whether two items may be one batch.
        tensors: float32 tensors whose range is wanted.
        layers: layers whose weight scale is to be chosen, if the settings ask for it.

    Raises:
        DataError: an output of the model becomes NaN or Inf, or the model cannot run on a batch.
    """
    search = WeightScaleSearch(model, layers, settings.grid_of, _core.ThreadPool(engine.threads), engine.memory)
    # A reader may use its memory again. With few items, the processors are shared out among each item's operators.
    first = [{name: array.copy() for name, array in item.items()} for item in islice(items, engine.threads)]
    made_of_one = _exposed_bytes(model, {*tensors, *search.tensors()}) * sample_count(first[0])
    at_once, each = engine.shared_out(len(first), made_of_one)
    # To the last bit as onnxruntime.quantization: item by item, the graph as it is. Threads would move bits too.
    exact = any(settings.range_of(name).is_exact for name in tensors)
    opened = list(_open(model, tensors, search, first[0], replace(each, threads=1) if exact else each, exact=exact))
    values = opened[-1](first[0])
    made, sampled = input_bytes(values), Sampled(values, tensors)  # how much the model makes of an item, and what
    del values
    at_once = engine.shared_out(at_once, made)[0]  # where the model does not tell shapes it is known only now
    if made * (at_once + READY) > engine.memory.free():
        at_once = 1  # then no batch waits for the one before it
    joiner = BatchJoiner((lambda *_: False) if exact else can_join, input_bytes(first[0]) * _EXPOSED_BYTES / made)
    statistics = TensorStatistics(tensors, at_once)

    def look_at(task: tuple[Batch, list[int]]) -> tuple[int, Batch, Batch | None]:
        batch, searched = task
        count = sample_count(batch)
        values = opened[0 if searched else -1](batch)
        statistics.update(values)
        scarce = {name: values[name] for name in search.scarce()}
        some = {name: _samples(values[name], searched, count) for name in search.plentiful()} if searched else None
        return count, scarce, some

    samples = 0
    tasks = ((batch, search.wanted(sample_count(batch))) for batch in joiner.join(chain(first, items)))
    for count, scarce, some in in_order(look_at, tasks, threads=at_once):
        search.feed(scarce, some)
        samples += count
        del scarce, some  # before the next batch is computed
    opened.clear()  # they hold the weights once more
    _core.return_memory()  # that of inner tensors too
    _check_outputs(model, statistics.not_finite)
    ranges, without, histograms = statistics.choose({name: settings.range_of(name) for name in tensors})
    coarse = swallowed(model, first[0], sampled, ranges, settings.range_of, each)
    ranges = {name: limits for name, limits in ranges.items() if name not in coarse}
    without.update(coarse)
    weights = search.choose()
    shifts = bias_shifts(model, weights, settings.grid_of, search.mean_inputs)
    return Calibration(ranges, weights, samples, without, histograms, shifts)


def _exposed_bytes(model: onnx.ModelProto, tensors: Collection[str]) -> float:
    """What the tensors of a sample take, as far as the model tells."""
    sizes = map(Dataflow(model).bytes_per_sample, tensors)
    return sum(size for size in sizes if not math.isnan(size))


def _check_outputs(model: onnx.ModelProto, not_finite: Mapping[str, str]) -> None:
    for output in model.graph.output:
        if output.name in not_finite:
            node = next((node for node in model.graph.node if output.name in node.output), None)
            raise DataError(
                f"the float model's output {output.name!r} becomes {not_finite[output.name]} on calibration data, so "
                "that no quantized model can be compared with it: look at the model and the data"
                + (f", or exclude the node {node.name!r}" if node is not None else "")
            )


def _samples(x: NDArray[np.generic], wanted: list[int], count: int) -> NDArray[np.generic]:
    """Some samples of a batch of so many; all of them where the tensor has not that many."""
    return x[wanted] if len(wanted) < count == len(x) else x


class _Exposed:
    """A session of the model with inner tensors as outputs.

    Args:
        asked: what the session is asked for instead of each of the tensors.
    """

    def __init__(self, opened: ort.InferenceSession, asked: list[str], names: list[str]) -> None:
        self._session, self._asked, self._names = opened, asked, names

    def __call__(self, batch: Batch) -> Batch:
        """The inputs, and the tensors that they lead to."""
        try:
            values = self._session.run(self._asked, batch)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            shapes = {name: array.shape for name, array in batch.items()}
            otherwise = DataError(f"the float model cannot run on calibration data of shape {shapes}: {error}")
            raise unless_out_of_memory(error, otherwise) from error
        made = zip(self._names, values, strict=True)
        return {**batch, **{name: value for name, value in made if isinstance(value, np.ndarray)}}


def _open(
    model: onnx.ModelProto,
    tensors: list[str],
    search: WeightScaleSearch,
    item: Batch,
    engine: Engine,
    *,
    exact: bool,
) -> tuple[_Exposed, _Exposed]:
    """The model that hands out the tensors, and those that are searched: in order, and with all but the scarce ones in
    any order, which takes less time. They may be one.

    Args:
        item: the first one, by which the searched layers are sorted.
        exact: the graph as it is.
    """
    searched, inputs = search.tensors(), {i.name for i in model.graph.input}
    names = [name for name in dict.fromkeys([*tensors, *searched]) if name not in inputs]
    names = names or [output.name for output in model.graph.output]  # data is tried in any case
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)

    def as_they_are() -> _Exposed:
        return _Exposed(session(exposed, engine, optimise=not exact), names, names)

    ordered = as_they_are() if exact or searched else None
    if ordered is not None and counts_samples(model):
        search.sort(ordered(item), sample_count(item))
    blocks = None if exact else session_in_blocks(exposed, set(names) - search.scarce(), engine)
    unordered = _Exposed(*blocks, names) if blocks is not None else ordered or as_they_are()
    return ordered or unordered, unordered
