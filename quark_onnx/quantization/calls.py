"""What `ModelQuantizer.quantize_model`, `finetune` and `quantize` do. The first call of one of them imports this."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

import onnx

from quark.onnx.calibration_data.any_data import Data, checked_data, data_reader
from quark.onnx.calibration_data.checked_items import DataReader
from quark.onnx.calibration_data.data_source import get_data_reader
from quark.onnx.calibration_data.images import ImagePreprocessing, image_preprocessing
from quark.onnx.calibration_data.path_reader import Preprocess
from quark.onnx.calibration_data.ready_readers import RandomDataReader
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.supported import check_supported, ignored_extra_options
from quark.onnx.errors import ConfigTypeError, ModelError, UnsupportedError
from quark.onnx.fast_finetune.fast_finetune import FastFinetune
from quark.onnx.inference.devices import engine_on_device
from quark.onnx.mixed_precision.target import Target
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.quantized_form import check_is_float, check_is_qdq, is_quantized
from quark.onnx.model_files.quantizer_gate import check_quantizers
from quark.onnx.model_files.saved_model import check_output_path, save_model
from quark.onnx.preparation.finite_constants import check_weights
from quark.onnx.qdq.constant_quantizers import with_integer_constants
from quark.onnx.quantization.finetuning_run import FinetuningRun
from quark.onnx.quantization.provenance import say_how_it_was_made
from quark.onnx.quantization.quantization_run import QuantizationRun
from quark.onnx.quantization.reference_model import ReferenceModel, reference_model
from quark.onnx.quantization.run_options import engine_for
from quark.onnx.quantization.to_target.targeted_run import TargetedRun
from quark.onnx.report.report import Report
from quark.onnx.report.written_configuration import written_configuration
from quark.onnx.resume.saved_run import saved_run
from quark.onnx.system.resources import PhaseClock

__all__ = ["finetuned_model", "quantized_model", "usual_reader"]

_LOG = logging.getLogger(__name__)


def quantized_model(
    config: QConfig,
    model_input: ModelLike,
    model_output: str | os.PathLike[str] | None,
    calibration_data_reader: Data | None,
    calibration_data_path: str | os.PathLike[str] | None,
    save_dir: str | os.PathLike[str] | None,
    target: Target | None = None,
) -> tuple[onnx.ModelProto | None, Report]:
    """Does what `ModelQuantizer.quantize_model` does, and returns the report too.

    Args:
        config: supported, and changed by nobody.
    """
    clock = PhaseClock()
    if calibration_data_path is None and not config.extra_options.get("UseRandomData", False):
        checked_data(calibration_data_reader)  # before any work
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
    if target is not None or config.auto_mixprecision is not None:
        if save_dir is not None:
            raise UnsupportedError(
                "save_dir is for a run without a target: with one the best model so far is at the output's path"
            )
        return _quantized_to_target(config, target, original, reader, other, model_output)
    run = QuantizationRun(config, engine_for(config), clock)
    prepared = run.prepared(original, reader, other)
    models = {"float model": original, "reference model": other.model if other else None}
    with saved_run(save_dir, models, config, model_output) as saved:
        quantized, report = run.quantized(original, prepared, saved)
        say_how_it_was_made(quantized, "quantized", config)
        returned = _deliver(quantized, model_output, clock, external_data=config.use_external_data_format)
        saved.finish()
    return returned, _with_notes(report, config, reader)


def _quantized_to_target(
    config: QConfig,
    target: Target | None,
    original: onnx.ModelProto,
    reader: DataReader,
    other: ReferenceModel | None,
    output: str | os.PathLike[str] | None,
) -> tuple[onnx.ModelProto | None, Report]:
    """The model with the fewest bits that reaches a target, or else the nearest to it."""
    run = TargetedRun(config, target, original, reader, other)

    def keep(model: onnx.ModelProto) -> None:
        say_how_it_was_made(model, "quantized", config)
        if output is not None:
            save_model(model, Path(output), external_data=config.use_external_data_format)

    model, report = run.best(keep)
    return (model if output is None else None), _with_notes(report, config, reader)


def finetuned_model(
    float_model: ModelLike,
    quantized_model: ModelLike,
    output: str | os.PathLike[str] | None,
    reader: Data,
    config: FastFinetuneConfig | QConfig,
    save_dir: str | os.PathLike[str] | None,
) -> tuple[onnx.ModelProto | None, Report]:
    """Does what `finetune` does, and returns the model too; None where it went to a file."""
    qconfig = config.taken() if isinstance(config, QConfig) else None
    config = qconfig or config
    algorithm = _checked_algorithm(config)
    engine = engine_for(qconfig)
    engine_on_device(algorithm, engine)
    checked_data(reader)
    if output is not None:
        check_output_path(output, float_model, quantized_model, algorithm.ref_model_path)
    clock = PhaseClock()
    with clock.phase("load"):
        model, quantized = _float_and_quantized(float_model, quantized_model)
    FastFinetune.check(model, algorithm)
    other = reference_model(algorithm.ref_model_path, model)
    run, source = FinetuningRun(algorithm, qconfig, engine, clock), data_reader(reader, model)
    prepared = run.prepared(model, quantized, source, other)
    models = {"float model": model, "quantized model": quantized, "reference model": other.model if other else None}
    with saved_run(save_dir, models, config, output) as saved:
        report = run.finetuned(prepared, quantized, saved)
        if qconfig is not None:
            report = _with_notes(report, qconfig, source, quantizes=False)
        say_how_it_was_made(quantized, "finetuned", config)
        delivered = _deliver(quantized, output, clock, external_data=False)
        saved.finish()
    return delivered, replace(report, configuration=written_configuration(config))


def usual_reader(data: Data, model: ModelLike, preprocess: Preprocess | ImagePreprocessing | str | None) -> Data:
    """The data, with the preprocessing of files resolved for a model.

    Raises:
        DataError: there is no preprocessing of this name, or it does not fit the model.
    """
    if preprocess is None:
        return data
    how = image_preprocessing(preprocess) if isinstance(preprocess, str) else preprocess
    return data_reader(data, model, preprocess=how.for_model(model) if isinstance(how, ImagePreprocessing) else how)


def _checked_algorithm(config: FastFinetuneConfig | QConfig) -> FastFinetuneConfig:
    """The algorithm that a quantized model is to be finetuned with."""
    if isinstance(config, QConfig):
        check_supported(config)
    algorithm = config.fast_finetune if isinstance(config, QConfig) else config
    if not isinstance(algorithm, FastFinetuneConfig):
        raise ConfigTypeError(f"finetune needs AdaRoundConfig or AdaQuantConfig, not {config!r}")
    if isinstance(config, QConfig) and config.equalisation is not None:
        raise UnsupportedError("CLEConfig changes the float model before it is quantized: leave it out of finetune()")
    if isinstance(config, QConfig) and config.auto_mixprecision is not None:
        raise UnsupportedError("AutoMixprecisionConfig chooses formats, which finetune() keeps: leave it out")
    return algorithm


def _float_and_quantized(float_model: ModelLike, quantized_model: ModelLike) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The two models, which are what their names say."""
    model = load_model(float_model, role="float model")
    quantized = with_integer_constants(load_model(quantized_model, role="quantized model"))
    if is_quantized(model):
        raise ModelError("the float model is quantized: pass the model that the quantized one was made from")
    check_is_qdq(quantized, has_layers=True)
    check_quantizers(quantized)
    return model, quantized


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
