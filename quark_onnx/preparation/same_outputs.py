"""Whether another form of a float model computes what the model does, on data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from quark.onnx.errors import DataError
from quark.onnx.graph.random_nodes import with_seeds
from quark.onnx.inference.sessions import Batch, Engine, batch_is_free, session
from quark.onnx.system.memory_limit import unless_out_of_memory

__all__ = ["Reference", "few_samples"]

_SAMPLES = 4  # of an item, where it can be cut
_RELATIVE, _OF_LARGEST = 1e-3, 1e-5  # another order of additions: of the value itself, of the largest of the output
_NUDGE = 1e-6  # relative, of the inputs: as much as rounding some additions does
_TIMES_NUDGED = 10.0  # what another order of additions may change, in changes by a nudge
_CAST_DB = 20.0  # signal to noise of an output in float32 against 16-bit floats

Array = NDArray[Any]


def few_samples(model: onnx.ModelProto, item: Batch) -> Batch:
    """A copy of an item, cut to its first samples where the model takes any number of them."""
    lengths = {len(array) if array.ndim else 0 for array in item.values()}
    if len(lengths) == 1 and lengths.pop() > _SAMPLES and batch_is_free(model):
        return {name: array[:_SAMPLES].copy() for name, array in item.items()}
    return {name: array.copy() for name, array in item.items()}


class Reference:
    """What a model computes on some items as it is written: onnxruntime's optimisation off.

    Random numbers are drawn from seeds that follow from the names of the nodes: other forms draw the same.

    Args:
        model: not changed.
        items: checked inputs of it; with none, other forms need only run.

    Raises:
        ModelError: onnxruntime cannot load the model.
        DataError: it cannot run it on an item.
    """

    def __init__(self, model: onnx.ModelProto, items: Sequence[Batch], engine: Engine) -> None:
        self._model, self._items, self._engine = model, items, engine
        self._names = [output.name for output in model.graph.output]
        self._nudged: list[list[list[_Outputs]]] | None = None
        self._outputs = self._run(model)

    def shapes(self, output: int) -> set[tuple[int, ...]]:
        """The shapes that an output has on the items; empty where it is no tensor."""
        return {array.shape for item in self._outputs for array in item[output].arrays if item[output].is_tensor}

    def difference(self, model: onnx.ModelProto) -> str:
        """What another form does otherwise, by more than rounding in another order can explain; "" for nothing.

        Raises:
            ModelError, DataError: onnxruntime cannot load it, or cannot run it on an item.
        """
        for item, (wanted, have) in enumerate(zip(self._outputs, self._run(model), strict=True)):
            for output, name in enumerate(self._names):
                problem = have[output].difference(wanted[output])
                if problem and not self._is_rounding(item, output, have[output]):
                    return f"output {name!r} would {problem}"
        return ""

    def difference_of_casts(self, model: onnx.ModelProto) -> str:
        """Does what `difference` does, for a form with other floats: what it computes of integers or NaN, or beyond the
        range of a type, may differ.
        """
        for wanted, have in zip(self._outputs, self._run(model), strict=True):
            for name, want, given in zip(self._names, wanted, have, strict=True):
                pairs = [(a, b) for a, b in zip(want.arrays, given.arrays, strict=False) if a.dtype.kind == "f"]
                if any(a.shape == b.shape and _sqnr(a, b) < _CAST_DB for a, b in pairs):
                    return f"output {name!r} would {given.difference(want)}"
        return ""

    def _is_rounding(self, item: int, output: int, have: _Outputs) -> bool:
        """Whether the model itself moves as much when its inputs move by little, or its optimised form computes it."""
        if self._nudged is None:
            self._nudged = self._run_nudged()
        wanted = self._outputs[item][output]
        return any(have.is_as_near_as(outputs[item][output], wanted) for outputs in self._nudged)

    def _run_nudged(self) -> list[list[list[_Outputs]]]:
        """The values by run, item and output."""
        signs, found = np.random.default_rng(0), [self._run(self._model, optimise=True)]
        for _ in range(2):
            items = [{name: _nudged(array, signs) for name, array in item.items()} for item in self._items]
            found.append(self._run(self._model, items))
        return found

    def _run(
        self, model: onnx.ModelProto, items: Sequence[Batch] | None = None, *, optimise: bool = False
    ) -> list[list[_Outputs]]:
        opened = session(with_seeds(model), self._engine, optimise=optimise)
        return [_outputs_of(opened, item) for item in (self._items if items is None else items)]


def _outputs_of(opened: ort.InferenceSession, item: Batch) -> list[_Outputs]:
    try:
        outputs = opened.run(None, item)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        shapes = {name: array.shape for name, array in item.items()}
        problem = DataError(f"the float model cannot run on calibration data of shape {shapes}: {error}")
        raise unless_out_of_memory(error, problem) from error
    return [_Outputs.of(output) for output in outputs]


@dataclass(frozen=True)
class _Outputs:
    """One output of a model: a tensor, or all tensors of a sequence, a map or an optional one."""

    arrays: tuple[Array, ...]
    is_tensor: bool

    @classmethod
    def of(cls, output: object) -> _Outputs:
        return cls(tuple(_arrays(output)), isinstance(output, np.ndarray))

    def difference(self, wanted: _Outputs) -> str:
        """ "have ..." or "be ...", or "" where both are the same but for rounding."""
        if len(self.arrays) != len(wanted.arrays):
            return f"have {len(self.arrays)} elements instead of {len(wanted.arrays)}"
        for have, want in zip(self.arrays, wanted.arrays, strict=True):
            if have.dtype != want.dtype:
                return f"be {have.dtype} instead of {want.dtype}"
            if have.shape != want.shape:
                return f"have the shape {have.shape} instead of {want.shape}"
            if want.dtype.kind == "f" and not _is_close(want, have):
                return f"be off by {_sqnr(want, have):.0f} dB"
            if want.dtype.kind != "f" and not np.array_equal(want, have):
                return f"differ in {np.mean(want != have):.1%} of its elements"
        return ""

    def is_as_near_as(self, nudged: _Outputs, wanted: _Outputs) -> bool:
        """Whether this is not much farther from what is wanted than a nudged output is."""
        if [a.dtype for a in self.arrays] != [a.dtype for a in wanted.arrays]:
            return False
        if [a.shape for a in self.arrays] != [a.shape for a in wanted.arrays]:  # as many boxes as pass a threshold
            return [a.shape for a in nudged.arrays] != [a.shape for a in wanted.arrays]
        if [a.shape for a in nudged.arrays] != [a.shape for a in wanted.arrays]:
            return True
        triples = zip(self.arrays, nudged.arrays, wanted.arrays, strict=True)
        return all(_distance(want, have) <= _TIMES_NUDGED * _distance(want, moved) for have, moved, want in triples)


def _arrays(output: object) -> Iterator[Array]:
    """The tensors in a value; the keys of maps, too."""
    if isinstance(output, np.ndarray):
        yield output
    elif isinstance(output, dict):
        yield np.array(list(output))
        yield np.array(list(output.values()))
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _arrays(value)
    elif output is not None:
        yield np.asarray(output)


def _nudged(array: Array, signs: np.random.Generator) -> Array:
    if array.dtype.kind != "f":
        return array
    moved: Array = (array * (1 + _NUDGE * signs.choice([-1.0, 1.0], array.shape))).astype(array.dtype)
    return moved


def _is_close(want: Array, have: Array) -> bool:
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True):
        return False
    x, y = want[finite].astype(np.float64), have[finite].astype(np.float64)
    return np.allclose(y, x, rtol=_RELATIVE, atol=_OF_LARGEST * float(np.abs(x).max(initial=0)))


def _distance(want: Array, have: Array) -> float:
    """The largest difference of floats, the number of differing elements of others."""
    if want.dtype.kind != "f":
        return float(np.count_nonzero(want != have))
    finite = np.isfinite(want) & np.isfinite(have)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(want[finite].astype(np.float64) - have[finite].astype(np.float64)).max(initial=0))


def _sqnr(want: Array, have: Array) -> float:
    """The SQNR in dB, of the elements that are finite in both."""
    finite = np.isfinite(want) & np.isfinite(have)
    x, y = want[finite].astype(np.float64), have[finite].astype(np.float64)
    noise, signal = float(((y - x) ** 2).sum()), float((x**2).sum())
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(signal / noise)) if signal > 0 else float("-inf")
