"""CalibMethod.MinOutputMSE: the weight scales with the least error of the layers' outputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx import _core
from quark.onnx.calibration.weight_grid import WeightGrid
from quark.onnx.layers.weight_layers import WeightLayer, also_data
from quark.onnx.qdq.blockwise import input_axes
from quark.onnx.qdq.per_tensor_weights import one_scale_weights
from quark.onnx.qdq.weight_params import WeightParams
from quark.onnx.system.memory_limit import MemoryLimit

__all__ = ["WeightScaleSearch"]

_LOG = logging.getLogger(__name__)
_PLANNED_SAMPLES = 16  # that all give rows to the choice of weight scales; after them fewer and fewer do
_FEWEST_ROWS, _MOST_ROWS = 32, 64  # of each of them
# Moments and rows of all layers together, in bytes; beyond it, or a quarter of what is free, there are fewer rows.
_BYTES = 1 << 28
_LEAST_ROWS = 16  # of a layer; where there is no memory for them, its weight scale is left to minimum and maximum


@dataclass(frozen=True, eq=False)
class _Searched:
    """A layer whose weight scale is searched.

    Attributes:
        weight: of the model; its rows are made when they are needed, as those of all layers are as large as the model.
        parts: moments or rows of its inputs; with blocks, of so many inputs each.
    """

    layer: WeightLayer
    grid: WeightGrid
    weight: onnx.TensorProto
    parts: tuple[_core.Layer, ...]
    block: int

    def feed(self, x: NDArray[np.generic], pool: _core.ThreadPool) -> None:
        """The layer's float input. ValueError where it does not fit."""
        for i, part in enumerate(self.parts):
            part.feed(self._own(i, x), None, pool)

    def is_scarce(self, x: NDArray[np.generic], samples: int) -> bool:
        """Whether so many samples of the layer's input have few rows each, or it has not that many."""
        try:
            own, positions = self.parts[0].extent(self._own(0, x))
        except ValueError:
            return True  # `feed` will say so
        return own != samples or positions < _FEWEST_ROWS

    def _own(self, i: int, x: NDArray[Any]) -> NDArray[Any]:
        """What a part sees of the layer's input."""
        x = x.swapaxes(-1, -2) if self.layer.attributes.comes_first else x
        return np.ascontiguousarray(x[..., i * self.block : (i + 1) * self.block] if self.block else x)

    def mean_input(self, pool: _core.ThreadPool) -> NDArray[np.float64]:
        """(groups, K)."""
        return np.concatenate([part.mean_input(pool) for part in self.parts], axis=1)

    def choose(self, others: Sequence[_Searched], pool: _core.ThreadPool) -> WeightParams:
        """The scale with the least output error, of other layers with the same weight too.

        Raises:
            ValueError: the data is not finite.
        """
        layer, grid, block, rows = self.layer, self.grid, self.block, _rows_of(self.layer, self.weight)
        together = [self, *others]
        for other in others:
            for part, further in zip(self.parts, other.parts, strict=True):
                part.join(further, pool)
        found = [
            part.weight_scale(
                np.ascontiguousarray(rows[:, i * block : (i + 1) * block]) if block else rows,
                qmin=grid.qmin,
                qmax=grid.qmax,
                symmetric=grid.symmetric,
                per_channel=grid.per_channel,
                bias_free=all(one.layer.bias is not None for one in together),
                scale_type=grid.scales.name,
                pool=pool,
            )
            for i, part in enumerate(self.parts)
        ]
        if not block:
            ((scale, zero_point),) = found
            return WeightParams(scale, zero_point, layer.channel_axis if grid.per_channel else None)
        blocks_axis = 1 - layer.channel_axis
        scale, zero_point = (np.stack(values, axis=blocks_axis) for values in zip(*found, strict=True))
        return WeightParams(scale, zero_point, blocks_axis, block)


class WeightScaleSearch:
    """CalibMethod.MinOutputMSE: moments or rows of every layer's float input, then the scale with the least error.

    Attributes:
        mean_inputs: the mean row (groups, K) of every layer whose scale was chosen, by node name.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Iterable[WeightLayer],
        grid_of: Callable[[str], WeightGrid | None],
        pool: _core.ThreadPool,
        memory: MemoryLimit = MemoryLimit(),  # noqa: B008 (it is frozen)
    ) -> None:
        constants = {t.name: t for t in model.graph.initializer}
        self._pool = pool
        self._layers: list[_Searched] = []
        blocked, one_scale = input_axes(model.graph), one_scale_weights(model)
        layers = tuple(layer for layer in layers if grid_of(layer.weight) is not None)
        left = {layer.weight for layer in layers if not _searchable(layer)} | also_data(model)
        searched: list[tuple[WeightLayer, WeightGrid, int, list[int]]] = []
        for layer in layers:
            grid = grid_of(layer.weight)
            if grid is None or layer.weight in left:
                continue
            block = grid.block if layer.weight in blocked else 0
            grid = replace(grid, per_channel=grid.per_channel and layer.weight not in one_scale, block=block)
            outputs, inputs = _rows_of(layer, constants[layer.weight]).shape
            sizes = [min(block, inputs - begin) for begin in range(0, inputs, block)] if block else [inputs]
            searched.append((layer, grid, outputs, sizes))
        share = _share_of_rows([(layer.attributes.groups, sizes) for layer, _, _, sizes in searched], _budget(memory))
        if share is None:
            _LOG.warning("there is no memory to choose weight scales by output error: minimum and maximum set them")
            searched, share = [], 0.0
        for layer, grid, outputs, sizes in searched:
            groups = layer.attributes.groups
            parts = tuple(_data(layer, size, outputs // groups, groups, _rows(size, share)) for size in sizes)
            self._layers.append(_Searched(layer, grid, constants[layer.weight], parts, grid.block))
        self._leave(left)
        self._scarce = frozenset(layer.weight for layer in layers)
        self._seen = self._fed = 0  # samples
        self._with_data = set[str]()  # weights
        self.mean_inputs: dict[str, NDArray[np.float64]] = {}

    def tensors(self) -> list[str]:
        return [searched.layer.input for searched in self._layers]

    def sort(self, values: Mapping[str, NDArray[np.generic]], samples: int) -> None:
        """Find the layers that only some samples are to be fed to, by the first item: those with enough rows in each,
        as all layers of that weight have. Until then there are none.
        """
        scarce = (one.layer.weight for one in self._layers if one.is_scarce(values[one.layer.input], samples))
        self._scarce = frozenset(scarce)

    def scarce(self) -> set[str]:
        """The tensors of which all samples are to be fed."""
        return {one.layer.input for one in self._layers if one.layer.weight in self._scarce}

    def plentiful(self) -> set[str]:
        """The tensors of which some samples are to be fed."""
        return {one.layer.input for one in self._layers if one.layer.weight not in self._scarce}

    def wanted(self, samples: int) -> list[int]:
        """Which samples of the next batch, of so many, those are. Must be asked once for each batch, in their order."""
        return [i for i in range(samples) if self._wants_next()] if self.plentiful() else []

    def _wants_next(self) -> bool:
        """The first samples are all wanted, then one in n / _PLANNED_SAMPLES at the nth, so that all data has its say.
        Besides, the core takes fewer rows of the later ones.
        """
        self._seen += 1
        times = self._seen / _PLANNED_SAMPLES
        wants = self._fed < _PLANNED_SAMPLES * min(times, 1 + math.log(max(times, 1)))
        self._fed += wants
        return wants

    def feed(
        self, scarce: Mapping[str, NDArray[np.generic]], plentiful: Mapping[str, NDArray[np.generic]] | None
    ) -> None:
        """The tensors of a batch: of all samples, and of those that are wanted, if any is."""
        by_kind = ((one, scarce if one.layer.weight in self._scarce else plentiful) for one in self._layers)
        fed = [(one, values[one.layer.input]) for one, values in by_kind if values is not None]
        self._with_data |= {one.layer.weight for one, x in fed if x.size}
        self._leave({one.layer.weight for one, x in fed if not self._fits(one, x)})

    def _leave(self, weights: Collection[str]) -> None:
        """Leaves weights to minimum and maximum, with all layers that have them."""
        self._layers = [searched for searched in self._layers if searched.layer.weight not in weights]

    def _fits(self, searched: _Searched, x: NDArray[np.generic]) -> bool:
        try:
            searched.feed(x, self._pool)
        except ValueError as error:
            name = searched.layer.node_name
            _LOG.warning("layer %s: its weight scale is left to minimum and maximum: %s %s", name, error, x.shape)
            return False
        return True

    def _by_weight(self) -> Iterable[list[_Searched]]:
        """The layers of each weight, mostly one."""
        found: dict[str, list[_Searched]] = {}
        for entry in self._layers:
            found.setdefault(entry.layer.weight, []).append(entry)
        return found.values()

    def choose(self) -> dict[str, WeightParams]:
        found = {}
        for first, *others in self._by_weight():
            layer = first.layer
            if layer.weight not in self._with_data:
                _LOG.warning("layer %s: its input is empty on all data: no scale to choose by it", layer.node_name)
                continue
            try:
                means = {one.layer.node_name: one.mean_input(self._pool) for one in (first, *others)}
                found[layer.weight] = first.choose(others, self._pool)  # which takes over the rows of the others
                self.mean_inputs.update(means)
            except ValueError as error:  # its input has values that are no numbers, or whose squares are none
                _LOG.warning("layer %s: its weight scale is left to minimum and maximum: %s", layer.node_name, error)
        return found


def _rows_of(layer: WeightLayer, weight: onnx.TensorProto) -> NDArray[np.float32]:
    """(outputs, K)."""
    rows: NDArray[np.float32] = layer.layout.rows(onnx.numpy_helper.to_array(weight)).astype(np.float32, copy=False)
    return rows


def _data(layer: WeightLayer, inputs: int, outputs: int, groups: int, rows: int) -> _core.Layer:
    """Return the data of a layer with so many inputs per group. The number of samples is not known ahead, so the first
    ones give `rows` rows and later ones fewer. They make moments, or are kept where they are fewer than the inputs.
    """
    convolution = layer.attributes.convolution(layer.weight_shape)
    return _core.Layer(
        inputs,
        outputs,
        _PLANNED_SAMPLES,
        rows,
        groups=groups,
        conv=convolution.core_geometry() if convolution else None,
        target=False,
        kept=rows if rows < inputs else 0,
        thinned=True,
    )


def _budget(memory: MemoryLimit) -> int:
    return min(_BYTES, memory.free() // 4)


def _rows(inputs: int, share: float) -> int:
    """How many rows a layer's scale is chosen by."""
    most = _PLANNED_SAMPLES * min(max(inputs // 16, _FEWEST_ROWS), _MOST_ROWS)
    return max(_LEAST_ROWS, int(share * most))


def _bytes(inputs: int, rows: int) -> int:
    """What the data of a group takes: its moments in float64, or rows in float32."""
    return 4 * inputs * rows if rows < inputs else 8 * inputs**2


def _share_of_rows(layers: Iterable[tuple[int, list[int]]], budget: int) -> float | None:
    """How many of the rows there is memory for; None where not even for the least.

    Args:
        layers: (groups, inputs of each part) of each layer.
    """
    layers = tuple(layers)
    for halved in range(10):
        share = 0.5**halved
        needed = sum(groups * _bytes(size, _rows(size, share)) for groups, sizes in layers for size in sizes)
        if needed <= budget:
            if halved:
                _LOG.info("weight scales are chosen by 1/%d of the rows, for want of memory", 2**halved)
            return share
    return None


def _searchable(layer: WeightLayer) -> bool:
    """Whether the layer's input is what its weight is applied to: not so in a normalization, or with transA."""
    a = layer.attributes
    return not (a.normalizes or a.transposes_input or a.is_stack(layer.weight_shape))
