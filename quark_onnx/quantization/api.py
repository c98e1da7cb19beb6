"""The documented entry point, `ModelQuantizer`, and `finetune` for models that another tool quantized."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path

import onnx

from quark.onnx.calibration_data.any_data import Data, checked_data, data_reader
from quark.onnx.calibration_data.checked_items import (
    DataReader,
    checked_items,
    first_samples,
    model_inputs,
)
from quark.onnx.calibration_data.data_source import get_data_reader
from quark.onnx.calibration_data.data_warnings import DataWatch
from quark.onnx.calibration_data.first_items import first_items
from quark.onnx.calibration_data.ready_readers import RandomDataReader
from quark.onnx.config.algorithm import AdaRoundConfig, FastFinetuneConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.supported import check_supported, ignored_extra_options
from quark.onnx.errors import ConfigTypeError, ModelError, UnsupportedError
from quark.onnx.fast_finetune.fast_finetune import FastFinetune, store_for
from quark.onnx.inference.devices import engine_on_device
from quark.onnx.inference.sessions import BatchMerging, Engine, batch_is_free
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.quantized_form import check_is_float, check_is_qdq, is_quantized
from quark.onnx.model_files.quantizer_gate import check_quantizers
from quark.onnx.model_files.saved_model import check_output_path, save_model
from quark.onnx.own_errors import only_own_errors
from quark.onnx.plan.float_form import matching_form
from quark.onnx.preparation.finite_constants import check_weights, with_finite_biases
from quark.onnx.preparation.prepare import prepared_forms, prepared_on
from quark.onnx.quantization.equalised_model import equalised_model
from quark.onnx.quantization.excluded_layers import excluded_outputs
from quark.onnx.quantization.judged_equalisation import recorded, why_equalisation_goes
from quark.onnx.quantization.plain_quantization import quantize_plainly
from quark.onnx.quantization.quantization_report import plain_report
from quark.onnx.quantization.reference_model import reference_forms, reference_model
from quark.onnx.quantization.tensor_specs import needed_opset, tensor_specs
from quark.onnx.report.activation_report import activation_reports
from quark.onnx.report.model_sizes import model_sizes
from quark.onnx.report.report import Report
from quark.onnx.report.resources import PhaseClock
from quark.onnx.report.written_configuration import written_configuration
from quark.onnx.resume.saved_run import saved_run
from quark.onnx.system.memory_limit import MemoryLimit
from quark.onnx.whole_model.set_apart import SetApart, StoredBatches

__all__ = ["ModelQuantizer", "finetune"]

_LOG = logging.getLogger(__name__)


class ModelQuantizer:
    """Quantizes float ONNX models. If the configuration lists CLEConfig it equalises them before; if it lists
    BiasCorrectionConfig, AdaRound or AdaQuant it corrects biases, and finetunes, after.

    Attributes:
        report: what the last `quantize_model` did; None before, and after a failed one.

    Args:
        config: never changed.

    Raises:
        ConfigTypeError: `config` is not a QConfig.
        UnsupportedError: it asks for what this version, or this machine, cannot do.
    """

    def __init__(self, config: QConfig) -> None:
        if not isinstance(config, QConfig):
            raise ConfigTypeError(f"ModelQuantizer takes a QConfig, not {type(config).__name__}")
        config = config.taken()  # what the caller changes from now on is none of ours
        check_supported(config)
        if config.fast_finetune is not None:
            engine_on_device(config.fast_finetune, _engine(config))
        self.config = config
        self.report: Report | None = None

    def __repr__(self) -> str:
        done = "nothing quantized yet" if self.report is None else repr(self.report)
        return f"ModelQuantizer({self.config!r}): {done}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the last run, or before it the configuration."""
        return self.config._repr_html_() if self.report is None else self.report._repr_html_()

    @only_own_errors
    def quantize_model(
        self,
        model_input: ModelLike,
        model_output: str | os.PathLike[str] | None = None,
        calibration_data_reader: Data | None = None,
        calibration_data_path: str | os.PathLike[str] | None = None,
        *,
        save_dir: str | os.PathLike[str] | None = None,
    ) -> onnx.ModelProto | None:
        """Quantize a float model. The input is never changed; a failed run leaves no file.

        Args:
            model_input: path of an ONNX file, or a ModelProto.
            model_output: where the quantized model goes; None to get it back.
            calibration_data_reader: anything with get_next() that gives a dict of arrays for the model's inputs, and
                None at the end, read once; or arrays, a dict of arrays, items, a path, as for `data_reader`.
            calibration_data_path: in place of a reader, a folder as for `PathDataReader`.
            save_dir: a folder, made if it is not there, that keeps what is done so far: the same call goes on from
                there, and gives the bits of a run without interruption. The records go when the result is saved.

        Returns:
            The quantized model if `model_output` is None, else None.

        Raises:
            OSError: a path cannot be read or written.
            ModelError: the model is not ONNX, is quantized already, or cannot run.
            DataError: the reader gives nothing, data that does not fit the model, or other data than the run in
                `save_dir` had.
            ConfigError, UnsupportedError: the configuration does not fit the model, or this version; `save_dir` is in
                use, or holds another run.
        """
        self.report = None
        clock, config = PhaseClock(), self.config
        if calibration_data_path is None and not config.extra_options.get("UseRandomData", False):
            checked_data(calibration_data_reader)  # before any work
        engine = _engine(config)
        reference_path = config.fast_finetune.ref_model_path if config.fast_finetune is not None else None
        if model_output is not None:
            check_output_path(model_output, model_input, reference_path)
        with clock.phase("load"):
            original = load_model(model_input, role="float model")
        check_is_float(original)
        check_weights(original)
        reader = get_data_reader(original, calibration_data_reader, calibration_data_path, config.extra_options)
        if config.fast_finetune is not None:
            FastFinetune.check(original, config.fast_finetune)
        other = reference_model(reference_path, original)
        with clock.phase("prepare"):
            needed = first_samples(checked_items(reader, model_inputs(original)), _samples_needed(config))
            few, items = first_items(original, needed)
            reference, reference_notes = reference_forms(other, few, engine)
            ready = prepared_on(original, few, engine, opset=needed_opset(config), unfused=_unfused(config))
            model, notes = with_finite_biases(ready.model)
            notes = (*reference_notes, *ready.notes, *notes)
            specs, prepared = tensor_specs(config, model, original), model
            del ready
        watch = DataWatch()
        with ExitStack() as stack:
            models = {"float model": original, "reference model": other.model if other else None}
            saved = stack.enter_context(saved_run(save_dir, models, config, model_output))
            items = watch.over(saved.watched(items))
            finetuning = None
            if config.fast_finetune is not None or config.bias_correction is not None:
                finetuning = FastFinetune(
                    config.fast_finetune,
                    engine=engine,
                    clock=clock,
                    saved=saved,
                    correction=config.bias_correction,
                )
                engine = stack.enter_context(finetuning).engine
                store, apart = finetuning.store, finetuning.apart
            else:
                store = stack.enter_context(store_for(AdaRoundConfig(), engine))
                apart = SetApart(store)
            items = apart.split(items, divisible=batch_is_free(model))
            first = next(items)
            equalised = batches = None
            if config.equalisation is not None:
                with clock.phase("equalise"):
                    equalised = equalised_model(model, specs.scope.quantized, config.equalisation, first, engine)
                if equalised.is_changed and not config.equalisation.keep_worse:
                    batches = StoredBatches(store, "calibration")  # for a second calibration, of the model as it was
            items = chain([first], items)
            del first  # it may be all of the data
            keep = finetuning.keep if finetuning is not None else None
            if equalised is None:
                made = quantize_plainly(model, specs, items, few, keep, engine, clock, saved)
            else:
                items = recorded(items, batches) if batches is not None else items
                its_specs = specs.with_twins(equalised.twins)
                made = quantize_plainly(equalised.model, its_specs, items, few, keep, engine, clock, saved)
                if batches is not None:
                    without = quantize_plainly(model, specs, iter(batches), few, None, engine, clock, saved)
                    batches.drop_all()
                    with clock.phase("compare"):
                        why = why_equalisation_goes(model, without.quantized, made.quantized, apart, store, engine)
                    if why:
                        made, equalised = without, equalised.undone(model, why)
            model, quantized, calibration = made.float_model, made.quantized, made.calibration
            warnings = equalised.warnings if equalised is not None else ()
            warnings += _logged((*made.warnings, *watch.warnings(model, calibration.ranges)))
            notes += made.notes
            seen = calibration.samples + (apart.compared.samples if apart.held_out else 0)
            if finetuning is not None:
                target = reference[0] if reference else model
                report = finetuning.run(
                    target,
                    quantized,
                    samples_seen=seen,
                    reference=target if reference else prepared,
                )
            else:
                report = plain_report(prepared, model, quantized, apart, store, engine, clock, seen)
            report = replace(
                report,
                pairs=equalised.pairs if equalised is not None else (),
                warnings=(*warnings, *report.warnings),
                notes=(*notes, *report.notes, *saved.notes),
                sizes=model_sizes(original, quantized),
                activations=activation_reports(calibration.histograms, quantized),
            )
            returned = _deliver(quantized, model_output, clock, external_data=config.use_external_data_format)
            saved.finish()
        self.report = _with_notes(report, config, reader)
        return returned


@only_own_errors
def finetune(
    float_model: ModelLike,
    quantized_model: ModelLike,
    output: str | os.PathLike[str] | None,
    reader: Data,
    config: FastFinetuneConfig | QConfig,
    *,
    save_dir: str | os.PathLike[str] | None = None,
) -> Report | tuple[onnx.ModelProto, Report]:
    """Finetune a Q/DQ model that any tool made: its scales, zero points and structure stay as they are.

    Args:
        float_model: the model that was quantized, as a path or ModelProto.
        quantized_model: the Q/DQ model; not changed.
        output: where the finetuned model goes; None to get it back.
        reader: calibration data, as for `ModelQuantizer.quantize_model`.
        config: AdaRoundConfig or AdaQuantConfig, or a QConfig that lists one.
        save_dir: as for `ModelQuantizer.quantize_model`.

    Returns:
        The report; with `output` None the finetuned model and the report.

    Raises:
        OSError: a path cannot be read or written.
        ModelError: a model is not ONNX, cannot run, has no Q/DQ, or no layer of it can be finetuned.
        DataError: the reader gives nothing, data that does not fit the model, or other data than the run in `save_dir`
            had.
        ConfigError, UnsupportedError: the configuration has no algorithm, or asks for what this version, or
            this machine, cannot do; `save_dir` is in use, or holds another run.
    """
    if isinstance(config, QConfig):
        config = config.taken()
        check_supported(config)
    algorithm = config.fast_finetune if isinstance(config, QConfig) else config
    if not isinstance(algorithm, FastFinetuneConfig):
        raise ConfigTypeError(f"finetune needs AdaRoundConfig or AdaQuantConfig, not {config!r}")
    if isinstance(config, QConfig) and config.equalisation is not None:
        raise UnsupportedError("CLEConfig changes the float model before it is quantized: leave it out of finetune()")
    correction = config.bias_correction if isinstance(config, QConfig) else None
    engine = _engine(config if isinstance(config, QConfig) else None)
    engine_on_device(algorithm, engine)
    checked_data(reader)
    if output is not None:
        check_output_path(output, float_model, quantized_model, algorithm.ref_model_path)
    clock = PhaseClock()
    with clock.phase("load"):
        model = load_model(float_model, role="float model")
        quantized = load_model(quantized_model, role="quantized model")
    if is_quantized(model):
        raise ModelError("the float model is quantized: pass the model that the quantized one was made from")
    check_is_qdq(quantized, has_layers=True)
    check_quantizers(quantized)
    FastFinetune.check(model, algorithm)
    other = reference_model(algorithm.ref_model_path, model)
    with clock.phase("prepare"):
        source = data_reader(reader, model)
        few, items = first_items(model, first_samples(checked_items(source, model_inputs(model)), algorithm.data_size))
        models = {"float model": model, "quantized model": quantized} | (
            {"reference model": other.model} if other else {}
        )
        forms, notes = reference_forms(other, few, engine) if other else prepared_forms(model, few, engine)
        model = matching_form(forms, quantized, algorithm.target_op_type)
        excluded = excluded_outputs(config, model, models["float model"]) if isinstance(config, QConfig) else ()
        del few, forms
    with (
        saved_run(save_dir, models, config, output) as saved,
        FastFinetune(
            algorithm, engine=engine, clock=clock, saved=saved, correction=correction, excluded=excluded
        ) as finetuning,
    ):
        with clock.phase("read data"):
            watch = DataWatch()
            items = watch.over(saved.watched(items))
            can_join = BatchMerging(model, finetuning.engine).is_exact
            items = finetuning.apart.split(items, divisible=batch_is_free(model))
            for _ in finetuning.keep(items, model, can_join):
                pass
            saved.data_was_read()
        report = finetuning.run(model, quantized, samples_seen=finetuning.apart.seen, needs_layers=True)
        warnings = (*_logged(watch.warnings(model, {})), *report.warnings)
        report = replace(
            report,
            warnings=warnings,
            notes=(*notes, *report.notes, *saved.notes),
            sizes=model_sizes(model, quantized),
            configuration=written_configuration(config),
        )
        if isinstance(config, QConfig):
            report = _with_notes(report, config, source, quantizes=False)
        delivered = _deliver(quantized, output, clock, external_data=False)
        saved.finish()
    return report if delivered is None else (delivered, report)


def _engine(config: QConfig | None) -> Engine:
    """Threads and memory as the options say: by default, what the machine has for this process."""
    options = config.extra_options if config is not None else {}
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = options.get("MaxMemory")
    return Engine(options.get("NumThreads", processors), memory=MemoryLimit(None if most is None else most << 20))


def _samples_needed(config: QConfig) -> int | None:
    """How many samples of the reader calibration and finetuning take together; None: all there are."""
    calibrated = config.extra_options.get("CalibDataSize")
    if calibrated is None or (config.bias_correction is not None and config.fast_finetune is None):
        return None
    return calibrated if config.fast_finetune is None else max(calibrated, config.fast_finetune.data_size)


def _unfused(config: QConfig) -> tuple[str, ...]:
    operators = {"FuseGelu": "Gelu", "FuseLayerNorm": "LayerNormalization"}
    return tuple(name for option, name in operators.items() if not config.extra_options.get(option, True))


def _logged(warnings: tuple[str, ...]) -> tuple[str, ...]:
    for line in warnings:
        _LOG.warning(line)
    return warnings


def _with_notes(report: Report, config: QConfig, reader: DataReader, *, quantizes: bool = True) -> Report:
    """The report, with the extra options that had no effect and what is to be said of the data; a warning each, too."""
    ignored = tuple(
        f"extra_options[{option.keyword!r}]={option.value!r} has no effect: {option.reason}"
        for option in ignored_extra_options(config, quantizes=quantizes)
    )
    is_random = isinstance(reader, RandomDataReader)
    of_random = ("calibrated with random data: the model's ranges say nothing about real data",)
    warnings = of_random if is_random and quantizes else ()
    for line in (*ignored, *warnings):
        _LOG.warning(line)
    return replace(
        report,
        ignored=(*ignored, *report.ignored),
        warnings=(*warnings, *report.warnings),
        configuration=written_configuration(config),
    )


def _deliver(
    model: onnx.ModelProto, path: str | os.PathLike[str] | None, clock: PhaseClock, *, external_data: bool
) -> onnx.ModelProto | None:
    if path is None:
        return model
    with clock.phase("save"):
        save_model(model, Path(path), external_data=external_data)
    return None
