"""The whole model against the float model, on samples set apart: before, in between, after."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.errors import DataError, ModelError
from quark.onnx.graph.joined_outputs import joined_outputs
from quark.onnx.graph.live_bytes import live_bytes
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.large_models import digest_of
from quark.onnx.inference.saturation import SATURATION, products_saturate
from quark.onnx.inference.sessions import in_order, session
from quark.onnx.measures.deviation import Comparison, Deviation, Parts
from quark.onnx.report.report import EndToEnd
from quark.onnx.system.memory_limit import unless_out_of_memory
from quark.onnx.whole_model.part_masks import PartMasks
from quark.onnx.whole_model.set_apart import FEWEST
from quark.onnx.whole_model.workplace import Workplace

__all__ = ["WholeModel", "WholeResult"]

_LOG = logging.getLogger(__name__)
_REFERENCE = "outputs of the whole model"  # in the place of a graph's name in the store


@dataclass(frozen=True)
class WholeResult:
    """What the comparison says, if there is anything to compare; warnings were logged too."""

    end_to_end: EndToEnd | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


class WholeModel:
    """Compares quantized models with a reference, as often as asked. The reference's outputs lie in the store; of a
    quantized model's outputs one batch is in memory.

    Args:
        reference: the float model, or what takes its place.
        role: what to call it: "float model".
        place: where the samples are, their outputs go, and all models run.

    Attributes:
        role: as given.
        names: of the reference's outputs.

    Raises:
        ModelError: the reference is invalid.
        DataError: it cannot run on the data.
    """

    def __init__(self, reference: onnx.ModelProto, role: str, place: Workplace) -> None:
        self.role, self._apart, self._store, self._engine = role, place.apart, place.store, place.engine
        self.names = [output.name for output in reference.graph.output]
        self._stated = [_stated_shape(output) for output in reference.graph.output]
        self._is_random = any(map(is_random, reference.graph.node))
        self._joined = joined_outputs(reference)
        self._sample_bytes = live_bytes(reference)
        self._shapes: list[list[tuple[int, ...] | None]] = []
        self._parts: list[dict[int, Parts]] = []
        self._left_out: dict[str, set[int]] = {}  # by output, the batches
        self._keep(reference)
        self._before: tuple[Comparison, Comparison | None] | None = None
        self._known: dict[tuple[str, bool], Comparison] = {}  # by digest of the model, and fuse_qdq

    def start(self, quantized: onnx.ModelProto) -> None:
        """Compare a quantized model before it is changed.

        Raises:
            ModelError: it is invalid, or its outputs are not the reference's.
            DataError: it cannot run on the data.
        """
        plain = self._compare(quantized)
        try:
            optimised = self._compare(quantized, fuse_qdq=True)
        except (ModelError, DataError) as error:  # it has been run as defined
            _LOG.warning("onnxruntime's default optimisation breaks the quantized model: %s", error)
            optimised = None
        self._before = plain, optimised

    def errors(self, quantized: onnx.ModelProto | None, output: str | None = None) -> NDArray[np.float64]:
        """How far a quantized model is off as it is now, run as defined, on each of the samples compared.

        Args:
            quantized: None: the model as it was at `start`.
            output: only this one counts; None: the mean of all.
        """
        assert self._before is not None
        return (self._before[0] if quantized is None else self._compare(quantized)).sample_errors(output)

    @property
    def can_judge(self) -> bool:
        """Whether two states of a model can be told apart by their outputs: there are some, and none is drawn."""
        assert self._before is not None
        return not self._is_random and bool(self._before[0].deviation().outputs)

    def result(self, quantized: onnx.ModelProto | None) -> WholeResult:
        """The comparison of the model as it is now with the one at `start`; None: it is still that one."""
        assert self._before is not None
        plain, optimised = self._before
        now, now_optimised = plain, optimised
        if quantized is not None:
            now = self._compare(quantized)
            now_optimised = None if optimised is None else self._compare(quantized, fuse_qdq=True)
        if not now.deviation().outputs:
            warning = "whole models were not compared: none of the outputs is a tensor of floats"
            _LOG.warning(warning)
            return WholeResult(None, (warning,), ())
        end_to_end = EndToEnd(
            reference=self.role,
            samples=self._apart.compared.samples,
            held_out=self._apart.held_out,
            before=plain.deviation(),
            after=now.deviation(),
            before_default=None if optimised is None else optimised.deviation(),
            after_default=None if now_optimised is None else now_optimised.deviation(),
        )
        warnings = (*self._lost(end_to_end.after), *_warnings_of_optimisation(now, now_optimised))
        for line in warnings:
            _LOG.warning(line)
        return WholeResult(end_to_end, warnings, self._notes())

    def _lost(self, after: Deviation) -> Iterator[str]:
        for output in after.outputs:
            for part in output.lost:
                text = f"the output {output.name!r} has lost its meaning"
                advice = "per channel, 16 bits, or float (exclude) where it is made may save it"
                if part is not output:
                    joint = self._joined[self.names.index(output.name)].joint
                    text = f"of the output {output.name!r}, the part from {part.name!r} has lost its meaning"
                    advice = f"{joint!r} joins it with others that have another range: exclude that node"
                yield f"{text}: its error is {100 * part.error:.0f} % of the variance of the {self.role}'s. {advice}"

    def _notes(self) -> tuple[str, ...]:
        notes = []
        if not self._apart.held_out:
            why = f"fewer than {FEWEST} samples" if self._apart.seen < FEWEST else "few items, which cannot be divided"
            notes.append(
                f"{why}: none was set apart, so the whole model is judged by samples that it was fitted to, and the "
                "figures are optimistic"
            )
        if products_saturate():
            notes.append(SATURATION)
        if self._is_random:
            notes.append("the model draws random numbers: the differences between whole models are theirs too")
        batches = len(self._shapes)
        for name, without in sorted(self._left_out.items()):
            where = f" in {len(without)} of {batches} batches" if len(without) < batches else ""
            notes.append(f"the output {name!r} was not compared{where}: its shape depends on the data")
        return tuple(notes)

    def _keep(self, reference: onnx.ModelProto) -> None:
        sources = {name for joined in self._joined.values() for name in joined.sources}
        further = sorted(sources - {i.name for i in reference.graph.input} - set(self.names))
        model, names = reference, [*self.names, *further]
        if further:
            model = onnx.ModelProto()
            model.CopyFrom(reference)
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in further)
        masks = PartMasks(self._joined, self._engine)
        for index, values in enumerate(self._run(model, self.role, fuse_qdq=False)):
            outputs = values[: len(self.names)]
            for position, value in enumerate(outputs):
                if _is_compared(value):
                    self._store.put((_REFERENCE, str(position), index), value)
            self._shapes.append([value.shape if isinstance(value, np.ndarray) else None for value in outputs])
            known = {**self._apart.compared[index], **dict(zip(names, values, strict=True))}
            self._parts.append(masks.of({name: known[name].shape for name in sources}))
            self._kinds = [_is_compared(value) for value in outputs]
        for position, stated in enumerate(self._stated):  # one that the model does not keep says nothing
            made = [of_batch[position] for of_batch in self._shapes]
            if stated is not None and not all(shape is None or _is_of(shape, stated) for shape in made):
                self._stated[position] = None

    def _compare(self, quantized: onnx.ModelProto, *, fuse_qdq: bool = False) -> Comparison:
        """The comparison of a model as it is now; it runs no state of it twice."""
        key = digest_of(quantized), fuse_qdq
        if key not in self._known or self._is_random:
            self._known[key] = self._compared(quantized, fuse_qdq=fuse_qdq)
        return self._known[key]

    def _compared(self, quantized: onnx.ModelProto, *, fuse_qdq: bool) -> Comparison:
        comparison = Comparison(self.names)
        for index, outputs in enumerate(self._run(quantized, "quantized model", fuse_qdq=fuse_qdq)):
            fits = self._fitting(outputs, index)
            wanted = [
                self._store.get((_REFERENCE, str(position), index)) if fit and self._kinds[position] else None
                for position, fit in enumerate(fits)
            ]
            comparison.add(wanted, outputs, self._parts[index])
        return comparison

    def _fitting(self, outputs: list[Any], index: int) -> list[bool]:
        """Which outputs have the reference's shape."""
        wanted = self._shapes[index]
        given = [value.shape if isinstance(value, np.ndarray) else None for value in outputs]
        fits = [want == have for want, have in zip(wanted, given, strict=False)]
        differing = [position for position, fit in enumerate(fits) if not fit]
        left_out = [p for p in differing if _depends_on_data(self._stated[p], wanted[p], given[p])]
        if len(wanted) != len(given) or len(left_out) < len(differing):
            raise ModelError(
                f"the two models are not one model: the {self.role}'s outputs have the shapes {wanted}, the quantized "
                f"model's {given}"
            )
        for position in left_out:
            self._left_out.setdefault(self.names[position], set()).add(index)
        return fits

    def _run(self, model: onnx.ModelProto, role: str, *, fuse_qdq: bool) -> Iterator[list[Any]]:
        batches = self._apart.compared
        each_bytes = self._sample_bytes * batches.samples / max(len(batches), 1)
        at_once, each = self._engine.shared_out(len(batches), each_bytes)
        try:
            opened = session(model, each, fuse_qdq=fuse_qdq)
            yield from in_order(lambda batch: list(opened.run(None, batch)), batches, threads=at_once)
        except ModelError as error:
            raise ModelError(f"the {role} is invalid: {error}") from error
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            otherwise = DataError(f"the {role} cannot run on the calibration data: {error}")
            raise unless_out_of_memory(error, otherwise) from error


def _is_compared(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _stated_shape(output: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """0 for an axis whose length the model leaves open."""
    tensor = output.type.tensor_type
    return tuple(axis.dim_value for axis in tensor.shape.dim) if tensor.HasField("shape") else None


def _depends_on_data(
    stated: tuple[int, ...] | None, want: tuple[int, ...] | None, have: tuple[int, ...] | None
) -> bool:
    """Whether two shapes of an output differ only where the model leaves it open: as many boxes as are found, say.

    All is open where the model states no shape.
    """
    if want is None or have is None:
        return False
    return stated is None or _is_of(have, stated)


def _is_of(shape: tuple[int, ...], stated: tuple[int, ...]) -> bool:
    return len(shape) == len(stated) and not any(
        length and length != axis for length, axis in zip(stated, shape, strict=True)
    )


def _warnings_of_optimisation(plain: Comparison, optimised: Comparison | None) -> Iterator[str]:
    if optimised is None:
        yield "onnxruntime runs the model only without optimisation (ORT_DISABLE_ALL, session.disable_quant_qdq)"
        return
    outputs = ", ".join(map(repr, optimised.beyond_chance(plain)))
    if outputs:
        yield (
            "with onnxruntime's default optimisation the model computes something else than it defines: L2 "
            f"{optimised.deviation().l2:.4g} instead of {plain.deviation().l2:.4g}, in {outputs}"
        )
