"""One run of `finetune`, in steps: prepare, set apart, read, finetune.

The items pass the stations 1 to 6 of `quantization_run`. There is no calibration: finetuning keeps what it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx

from quark.onnx.calibration_data.checked_items import Batch, DataReader
from quark.onnx.calibration_data.data_warnings import DataWatch
from quark.onnx.calibration_data.first_items import first_items
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.fast_finetune.fast_finetune import FastFinetune
from quark.onnx.inference.sessions import BatchMerging, Engine
from quark.onnx.plan.float_form import matching_form
from quark.onnx.preparation.prepare import prepared_forms
from quark.onnx.quantization.node_scope import NodeScope
from quark.onnx.quantization.quantization_run import items_to_fit
from quark.onnx.quantization.reference_model import ReferenceModel, reference_forms
from quark.onnx.report.model_sizes import model_sizes
from quark.onnx.report.report import Report
from quark.onnx.resume.saved_run import NothingSaved
from quark.onnx.system.resources import PhaseClock

__all__ = ["FinetuningRun", "PreparedToTune"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedToTune:
    """What the layers of a quantized model are to come close to.

    Attributes:
        model: the float model, or what takes its place, in the form that is most like the quantized one.
        excluded: tensors of it that excluded layers make.
        items: the reader's, from the first on.
        notes: for the report.
    """

    model: onnx.ModelProto
    excluded: frozenset[str]
    items: Iterator[Batch]
    notes: tuple[str, ...]


class FinetuningRun:
    """The steps from a quantized model, its float model and a reader to the finetuned model and its report.

    Args:
        algorithm: that this version can carry out.
        config: what else was configured, if it was.
        engine: threads and memory.
        clock: measures the phases.
    """

    def __init__(
        self, algorithm: FastFinetuneConfig, config: QConfig | None, engine: Engine, clock: PhaseClock
    ) -> None:
        self._algorithm, self._config, self._engine, self._clock = algorithm, config, engine, clock

    def prepared(
        self, model: onnx.ModelProto, quantized: onnx.ModelProto, reader: DataReader, other: ReferenceModel | None
    ) -> PreparedToTune:
        """Bring the float model, or the reference, into the form of the quantized one."""
        with self._clock.phase("prepare"):
            few, items = first_items(model, reader, self._algorithm.data_size)
            forms, notes = (
                reference_forms(other, few, self._engine) if other else prepared_forms(model, few, self._engine)
            )
            form = matching_form(forms, quantized, self._algorithm.target_op_type)
            excluded = _excluded_outputs(self._config, form, model) if self._config is not None else frozenset()
        return PreparedToTune(form, excluded, items, notes)

    def finetuned(self, prepared: PreparedToTune, quantized: onnx.ModelProto, saved: NothingSaved) -> Report:
        """The report of finetuning `quantized`, in place."""
        clock, model, watch = self._clock, prepared.model, DataWatch()
        correction = self._config.bias_correction if self._config is not None else None
        with FastFinetune(
            self._algorithm,
            engine=self._engine,
            clock=clock,
            saved=saved,
            correction=correction,
            excluded=prepared.excluded,
        ) as finetuning:
            with clock.phase("read data"):
                place = finetuning.place
                items = items_to_fit(prepared.items, model, saved, watch, place)
                for _ in finetuning.keep(items, model, BatchMerging(model, place.engine).is_exact):
                    pass
                saved.data_was_read()
            report = finetuning.run(model, quantized, samples_seen=place.apart.seen, needs_layers=True)
        warnings = watch.warnings(model, {})
        for warning in warnings:
            _LOG.warning(warning)
        return replace(
            report,
            warnings=(*warnings, *report.warnings),
            notes=(*prepared.notes, *report.notes, *saved.notes),
            sizes=model_sizes(model, quantized),
        )


def _excluded_outputs(config: QConfig, model: onnx.ModelProto, original: onnx.ModelProto) -> frozenset[str]:
    """What the excluded nodes make. Tools that quantize rename nodes rather than tensors.

    Args:
        model: the float model, prepared or not.
        original: as it was given, whose nodes the configuration may name too.

    Raises:
        ConfigError: the configuration names a node or an operator that there is not.
    """
    excluded = NodeScope(config, model, original).excluded
    return frozenset(name for node in model.graph.node if node.name in excluded for name in node.output if name)
