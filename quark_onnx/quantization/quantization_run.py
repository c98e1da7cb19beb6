"""One run of `ModelQuantizer.quantize_model`, in steps: prepare, set apart, equalise, calibrate, finetune, report.

The items of the reader are one stream, read once. They pass these stations, in this order:

1. `checked_items` (with 2 and 3 in `first_items`): their names, types and shapes fit the model.
2. `first_samples`: no more than calibration and finetuning take.
3. The first ones are looked at ahead, to check the prepared model on, and come again.
4. `saved.watched` (with 5 and 6 in `items_to_fit`): a digest of all data tells whether `save_dir` holds a run on it.
5. `watch.over`: what is odd about the data; on all that was read, so in front of the next.
6. `apart.split`: samples set apart to compare whole models on. Nothing behind sees them, so nothing is fitted to them.
7. `recorded`: where equalisation may have to be undone, a second calibration reads them again.
8. `PlainQuantizer`: progress is shown; finetuning keeps its samples; calibration takes the first `CalibDataSize`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain

import onnx

from quark.onnx.calibration_data.checked_items import Batch, DataReader
from quark.onnx.calibration_data.data_warnings import DataWatch
from quark.onnx.calibration_data.first_items import first_items
from quark.onnx.config.algorithm import AdaRoundConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.fast_finetune.fast_finetune import FastFinetune, store_for
from quark.onnx.inference.sessions import Engine, batch_is_free
from quark.onnx.mixed_precision.formats import Formats
from quark.onnx.preparation.finite_constants import with_finite_biases
from quark.onnx.preparation.prepare import prepared_on
from quark.onnx.quantization.equalised_model import Equalised, equalised_model
from quark.onnx.quantization.judged_equalisation import recorded, why_equalisation_goes
from quark.onnx.quantization.plain_quantization import Keep, PlainQuantization, PlainQuantizer
from quark.onnx.quantization.quantization_report import plain_report
from quark.onnx.quantization.reference_model import ReferenceModel, reference_forms
from quark.onnx.quantization.run_options import samples_needed, unfused
from quark.onnx.quantization.tensor_specs import TensorSpecs, needed_opset, tensor_specs
from quark.onnx.report.activation_report import activation_reports
from quark.onnx.report.model_sizes import model_sizes
from quark.onnx.report.report import Report
from quark.onnx.resume.saved_run import NothingSaved
from quark.onnx.system.resources import PhaseClock
from quark.onnx.whole_model.set_apart import SetApart, StoredBatches
from quark.onnx.whole_model.workplace import Workplace

__all__ = ["Prepared", "QuantizationRun", "items_to_fit"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prepared:
    """The float model in the form that is quantized.

    Attributes:
        model: with biases that are finite.
        specs: what of it is quantized, and how.
        items: the reader's, from the first on.
        few: the first items.
        reference: what takes the float model's place in finetuning, or None.
        notes: for the report.
    """

    model: onnx.ModelProto
    specs: TensorSpecs
    items: Iterator[Batch]
    few: list[Batch]
    reference: onnx.ModelProto | None
    notes: tuple[str, ...]


def items_to_fit(
    items: Iterator[Batch], model: onnx.ModelProto, saved: NothingSaved, watch: DataWatch, place: Workplace
) -> Iterator[Batch]:
    """The items without the samples set apart; all are watched.

    Args:
        model: that the items are to be fed to.
    """
    return place.apart.split(watch.over(saved.watched(items)), divisible=batch_is_free(model))


class QuantizationRun:
    """The steps from a float model and a reader to a quantized model and its report.

    Args:
        config: one that this version can carry out.
        engine: threads and memory.
        clock: measures the phases.
        formats: of single tensors, which stand above those of the configuration.
    """

    def __init__(self, config: QConfig, engine: Engine, clock: PhaseClock, formats: Formats | None = None) -> None:
        self._config, self._engine, self._clock = config, engine, clock
        self._formats = formats or Formats()

    def prepared(self, original: onnx.ModelProto, reader: DataReader, other: ReferenceModel | None) -> Prepared:
        """Prepare the float model, and the reference, as far as the first items let them compute the same."""
        config, engine = self._config, self._engine
        with self._clock.phase("prepare"):
            few, items = first_items(original, reader, samples_needed(config))
            reference, of_reference = reference_forms(other, few, engine)
            opset = max(needed_opset(config), self._formats.opset)
            ready = prepared_on(original, few, engine, opset=opset, unfused=unfused(config))
            model, of_biases = with_finite_biases(ready.model)
            specs = tensor_specs(config, model, original).with_formats(self._formats)
        notes = (*of_reference, *ready.notes, *of_biases)
        return Prepared(model, specs, items, few, reference[0] if reference else None, notes)

    def quantized(
        self, original: onnx.ModelProto, prepared: Prepared, saved: NothingSaved
    ) -> tuple[onnx.ModelProto, Report]:
        """The quantized model, finetuned if the configuration says so, and the report."""
        with ExitStack() as stack:
            finetuning, watch = self._finetuning(stack, saved), DataWatch()
            place = finetuning.place if finetuning is not None else self._place(stack)
            items = items_to_fit(prepared.items, prepared.model, saved, watch, place)
            quantizer = PlainQuantizer(prepared.few, saved, place.engine, self._clock)
            keep = finetuning.keep if finetuning is not None else None
            made, equalised = self._equalised_and_quantized(prepared, items, quantizer, keep, place)
            warnings = (*made.warnings, *watch.warnings(made.float_model, made.calibration.ranges))
            for warning in warnings:
                _LOG.warning(warning)
            report = self._report(prepared, made, finetuning, place)
        return made.quantized, replace(
            report,
            pairs=equalised.pairs if equalised is not None else (),
            warnings=(*(equalised.warnings if equalised is not None else ()), *warnings, *report.warnings),
            notes=(*prepared.notes, *made.notes, *report.notes, *saved.notes),
            sizes=model_sizes(original, made.quantized),
            activations=activation_reports(made.calibration.histograms, made.quantized),
        )

    def _finetuning(self, stack: ExitStack, saved: NothingSaved) -> FastFinetune | None:
        config = self._config
        if config.fast_finetune is None and config.bias_correction is None:
            return None
        return stack.enter_context(
            FastFinetune(
                config.fast_finetune,
                engine=self._engine,
                clock=self._clock,
                saved=saved,
                correction=config.bias_correction,
            )
        )

    def _place(self, stack: ExitStack) -> Workplace:
        """What a run needs to compare models, without finetuning."""
        store = stack.enter_context(store_for(AdaRoundConfig(), self._engine))
        return Workplace(self._engine, store, SetApart(store))

    def _equalised_and_quantized(
        self,
        prepared: Prepared,
        items: Iterator[Batch],
        quantizer: PlainQuantizer,
        keep: Keep | None,
        place: Workplace,
    ) -> tuple[PlainQuantization, Equalised | None]:
        """The quantized model before anything is tuned, and what equalisation did, if it was asked for.

        The model without equalisation is quantized too, and taken where it is better.
        """
        model, specs, config = prepared.model, prepared.specs, self._config.equalisation
        if config is None:
            return quantizer.quantized(model, specs, items, keep), None
        first = next(items)
        with self._clock.phase("equalise"):
            equalised = equalised_model(model, specs.scope.quantized, config, first, place.engine)
        items = chain([first], items)
        del first  # it may be all of the data
        batches = None
        if equalised.is_changed and not config.keep_worse:
            batches = StoredBatches(place.store, "calibration")  # for a second calibration, of the model as it was
            items = recorded(items, batches)
        made = quantizer.quantized(equalised.model, specs.with_twins(equalised.twins), items, keep)
        if batches is None:
            return made, equalised
        without = quantizer.quantized(model, specs, iter(batches))
        batches.drop_all()
        with self._clock.phase("compare"):
            why = why_equalisation_goes(model, without.quantized, made.quantized, place)
        return (without, equalised.undone(model, why)) if why else (made, equalised)

    def _report(
        self, prepared: Prepared, made: PlainQuantization, finetuning: FastFinetune | None, place: Workplace
    ) -> Report:
        """Finetune, or only compare with the float model."""
        apart = place.apart
        seen = made.calibration.samples + (apart.compared.samples if apart.held_out else 0)
        if finetuning is None:
            return plain_report(prepared.model, made, place, self._clock, seen)
        target = prepared.reference if prepared.reference is not None else made.float_model
        reference = target if prepared.reference is not None else prepared.model
        return finetuning.run(target, made.quantized, samples_seen=seen, reference=reference)
