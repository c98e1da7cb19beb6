"""Compare a quantized model with its float model on data, as ONNX defines it and as onnxruntime runs it by default."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.checked_items import Batch, checked_items, first_samples, model_inputs, sample_count
from quark.onnx.config.algorithm import TUNABLE_OP_TYPES
from quark.onnx.errors import DataError, ModelError
from quark.onnx.inference.saturation import SATURATION, products_saturate
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.measures.deviation import Comparison
from quark.onnx.measures.layer_error import LayerError
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.quantized_form import is_quantized
from quark.onnx.own_errors import only_own_errors
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.float_form import matching_form
from quark.onnx.preparation.prepare import prepared_forms
from quark.onnx.qdq.constant_quantizers import with_integer_constants
from quark.onnx.quantization.run_options import engine_for
from quark.onnx.report.plain_data import to_plain
from quark.onnx.system.memory_limit import unless_out_of_memory
from quark.onnx.system.progress import PhaseProgress
from quark.onnx.whole_model.layer_errors import layer_errors_or_note

__all__ = ["ComparedModels", "ComparedOutput", "compare_models"]

_OF_LAYERS = 8  # samples that layers are compared on: each has many positions


@dataclass(frozen=True)
class ComparedOutput:
    """One output of floats.

    Attributes:
        name: of the output.
        l2: the L2 norm of the difference of a sample, mean over samples.
        sqnr_db: power of the reference's output over power of the difference, in dB; inf without a difference.
        cosine: between the two outputs of a sample as vectors, mean over samples: 1 where they point the same way; nan
            where one is 0.
    """

    name: str
    l2: float
    sqnr_db: float
    cosine: float


@dataclass(frozen=True)
class ComparedModels:
    """How far a model is from a reference.

    Attributes:
        samples: compared.
        agreement: share of samples with the same largest entry of the first output; None where that is not (samples,
            classes).
        outputs: run as ONNX defines the model: Q and DQ computed, with float operators in between.
        default_agreement, default_outputs: with onnxruntime's default optimisation, which has integer kernels; None and
            () where it cannot run the model so.
        layers: what each quantized layer inherits and adds, measured on the first samples; none where the models could
            not be compared layer by layer.
        notes: what was not compared, and why.
    """

    samples: int
    agreement: float | None
    outputs: tuple[ComparedOutput, ...]
    default_agreement: float | None
    default_outputs: tuple[ComparedOutput, ...]
    layers: tuple[LayerError, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The figures in a line."""
        worst = min((output.sqnr_db for output in self.outputs), default=None)
        parts = [f"{self.samples} samples"]
        if self.agreement is not None:
            parts.append(f"agreement {100 * self.agreement:.1f} %")
        if worst is not None:
            parts.append(f"SQNR {worst:.1f} dB" + (" at worst" if len(self.outputs) > 1 else ""))
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number is None."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@only_own_errors
def compare_models(reference: ModelLike, model: ModelLike, data: Data, *, samples: int | None = None) -> ComparedModels:
    """Run two models on the same data.

    Args:
        reference: the float model; any model with the same inputs and outputs.
        model: the quantized one.
        data: in any form that `data_reader` takes.
        samples: the first so many; None: all.

    Raises:
        OSError: a path cannot be read.
        ModelError: a model is invalid, or the two have not the same inputs and outputs.
        DataError: the data does not fit.
    """
    engine = engine_for(None)
    first, second = load_model(reference, role="float model"), load_model(model, role="quantized model")
    _check_interfaces(first, second)
    items = first_samples(checked_items(data_reader(data, first), model_inputs(first)), samples)
    names = [output.name for output in first.graph.output]
    runs = [_Run(first, "float model", engine), _Run(second, "quantized model", engine)]
    notes: list[str] = []
    try:
        runs.append(_Run(second, "quantized model", engine, fuse_qdq=True))
    except ModelError as error:
        notes.append(f"onnxruntime runs the quantized model only without optimisation: {error}")
    gathered = [_Gathered(names) for _ in runs[1:]]
    count, few = 0, list[Batch]()
    with PhaseProgress("Comparing samples", None) as progress:
        for item in items:
            wanted, *others = (run(item) for run in runs)
            for sums, given in zip(gathered, others, strict=True):
                sums.add(wanted, given)
            if count < _OF_LAYERS:
                few.append({name: array.copy() for name, array in item.items()})
            count += sample_count(item)
            progress.advance(sample_count(item))
    left_out = sorted(set().union(*(sums.left_out for sums in gathered)))
    notes += [f"the output {name!r} was not compared: its shape depends on the data" for name in left_out]
    if is_quantized(second) and products_saturate():
        notes.append(SATURATION)
    layers, further = _layers(first, second, few, engine)
    default = gathered[1] if len(gathered) > 1 else None
    return ComparedModels(
        samples=count,
        agreement=gathered[0].agreement,
        outputs=tuple(gathered[0].outputs()),
        default_agreement=default.agreement if default else None,
        default_outputs=tuple(default.outputs()) if default else (),
        layers=layers,
        notes=(*notes, *further),
    )


def _layers(
    reference: onnx.ModelProto, model: onnx.ModelProto, items: Sequence[Batch], engine: Engine
) -> tuple[tuple[LayerError, ...], tuple[str, ...]]:
    """The layers' errors, and notes; nothing where the reference is quantized too, or the model is not."""
    if is_quantized(reference) or not is_quantized(model):
        return (), ()
    model = with_integer_constants(model)
    try:
        forms, _ = prepared_forms(reference, items, engine)
        form = matching_form(forms, model, TUNABLE_OP_TYPES)
    except ModelError as error:
        return (), (f"the layers were not compared one by one: {error}",)
    plan = build_plan(form, model, TUNABLE_OP_TYPES)
    return layer_errors_or_note(form, model, items, engine, plan.layers)


class _Run:
    """A model that is run item by item."""

    def __init__(self, model: onnx.ModelProto, role: str, engine: Engine, *, fuse_qdq: bool = False) -> None:
        self._role = role
        self._session = session(model, engine, fuse_qdq=fuse_qdq)

    def __call__(self, item: Batch) -> list[Any]:
        try:
            return list(self._session.run(None, item))
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            otherwise = DataError(f"the {self._role} cannot run on the data: {error}")
            raise unless_out_of_memory(error, otherwise) from error


class _Gathered:
    """Sums of one comparison.

    Attributes:
        left_out: outputs whose shape is not the reference's.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._comparison = Comparison(names)
        self._cosines: dict[str, list[NDArray[np.float64]]] = {}
        self.left_out: set[str] = set()

    def add(self, wanted: Sequence[Any], given: Sequence[Any]) -> None:
        """The outputs of an item."""
        fitting: list[Any] = []
        for name, want, have in zip(self._names, wanted, given, strict=True):
            fits = np.shape(want) == np.shape(have)
            fitting.append(want if fits else None)
            if not fits:
                self.left_out.add(name)
            elif isinstance(want, np.ndarray) and want.dtype.kind == "f" and want.size:
                self._cosines.setdefault(name, []).append(_cosines(want, have))
        self._comparison.add(fitting, given)

    @property
    def agreement(self) -> float | None:
        return self._comparison.deviation().agreement

    def outputs(self) -> Iterator[ComparedOutput]:
        """All outputs of floats."""
        for output in self._comparison.deviation().outputs:
            cosines = np.concatenate(self._cosines[output.name])
            yield ComparedOutput(output.name, output.l2, output.sqnr_db, float(cosines.mean()))


def _cosines(want: NDArray[Any], have: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each sample; nan where one of the vectors is 0."""
    a, b = (array.reshape(len(array) if array.ndim else 1, -1).astype(np.float64) for array in (want, have))
    lengths = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(axis=1) / lengths)


def _check_interfaces(first: onnx.ModelProto, second: onnx.ModelProto) -> None:
    """Checks that both models take the same data, and give as many outputs."""
    taken = [{spec.name for spec in model_inputs(model)} for model in (first, second)]
    if taken[0] != taken[1]:
        raise ModelError(f"the models have not the same inputs: {sorted(taken[0])} and {sorted(taken[1])}")
    made = [[output.name for output in model.graph.output] for model in (first, second)]
    if len(made[0]) != len(made[1]):
        raise ModelError(f"the models have not the same outputs: {made[0]} and {made[1]}")
