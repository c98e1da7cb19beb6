"""What is odd about calibration data: too little of it, all of it equal, raw pixels where normalised ones are meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.graph.dataflow import Dataflow
from quark.onnx.layers.weight_layers import WeightLayer, weight_layers

__all__ = ["DataWatch"]

_FEWEST = 32  # samples, below which ranges and errors depend much on which they are
_LARGE = 50.0  # outputs of a first layer: of inputs about 1, as layers are trained for, they are about 1 to 10
_VIEWS = ("Identity", "Pad", "Reshape", "Transpose")


class DataWatch:
    """Looks at the samples that pass by.

    Attributes:
        samples: how many there were.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._first: Batch | None = None
        self._equal = True
        self._pixels: dict[str, _Pixels] = {}

    def over(self, items: Iterator[Batch]) -> Iterator[Batch]:
        """Passes the items on."""
        for item in items:
            count = sample_count(item)
            self.samples += count
            self._equal = self._equal and self._are_equal(item, count)
            for name, array in item.items():
                self._pixels.setdefault(name, _Pixels()).add(array)
            yield item

    def _are_equal(self, item: Batch, count: int) -> bool:
        """Whether all samples are the first one."""
        whole = any(not array.ndim or len(array) != count for array in item.values())
        if self._first is None:
            self._first = {name: (array if whole else array[:1]).copy() for name, array in item.items()}
        return all(
            array.dtype == self._first[name].dtype
            and array.shape[not whole :] == self._first[name].shape[not whole :]
            and bool((array == self._first[name]).all())
            for name, array in item.items()
        )

    def warnings(self, model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> tuple[str, ...]:
        """What is odd, a line each.

        Args:
            model: the float model.
            ranges: of its tensors, as far as they are known.
        """
        return (*self._of_numbers(), *self._of_pixels(model, ranges))

    def _of_numbers(self) -> Iterator[str]:
        if self.samples == 1:
            yield (
                "there is one calibration sample: ranges, scales and all errors reported are those of this sample, "
                f"and say little about others. Take {_FEWEST} or more"
            )
        elif self._equal and self.samples:
            yield (
                f"all {self.samples} calibration samples are equal: does the reader return the same array each time, "
                "or zeros? Ranges, scales and all errors reported are those of this sample"
            )
        elif self.samples < _FEWEST:
            yield (
                f"there are {self.samples} calibration samples: ranges, scales and errors depend on which they are. "
                f"Take {_FEWEST} or more"
            )

    def _of_pixels(self, model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]) -> Iterator[str]:
        raw = {name: seen for name, seen in self._pixels.items() if seen.are_bytes}
        for layer in weight_layers(model) if raw else ():
            graph, source = Dataflow(model), layer.input
            while (node := graph.producer.get(source)) is not None and node.op_type in _VIEWS:
                source = node.input[0]
            if source in raw and _largest_output(layer, graph, ranges) > _LARGE:
                seen = raw.pop(source)
                yield (
                    f"input {source!r} has whole numbers from {seen.low:g} to {seen.high:g}, mean {seen.mean:.3g}, "
                    f"which go into {layer.op_type} {layer.node_name!r} as they are and make values up to "
                    f"{_largest_output(layer, graph, ranges):.3g} of it: are they pixels where the model was trained "
                    "on normalised ones? Then give the calibration data the preprocessing of the training"
                )


class _Pixels:
    """The range of an input, and whether all of it could be bytes."""

    def __init__(self) -> None:
        self.low, self.high, self._sum, self._count, self._whole = np.inf, -np.inf, 0.0, 0, True

    def add(self, array: NDArray[np.generic]) -> None:
        if not self._whole or array.dtype != np.float32 or array.ndim < 3 or not array.size:
            self._whole = False
            return
        values = array.astype(np.float32, copy=False)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._sum, self._count = self._sum + float(values.sum(dtype=np.float64)), self._count + values.size
        self._whole = self.low >= 0 and self.high <= 255 and bool((values == np.rint(values)).all())

    @property
    def are_bytes(self) -> bool:
        """Whether they are whole numbers from 0 to 255, and not just small ones."""
        return self._whole and self.high > 127

    @property
    def mean(self) -> float:
        return self._sum / self._count


def _largest_output(layer: WeightLayer, graph: Dataflow, ranges: Mapping[str, tuple[float, float]]) -> float:
    reader = graph.only_reader(layer.output)
    behind = reader.output[0] if reader is not None else ""
    return max(map(abs, ranges.get(layer.output) or ranges.get(behind) or (0.0,)))
