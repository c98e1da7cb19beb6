"""Several runs of quantization with other formats each, until a target is reached."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx

from quark.onnx.calibration_data.any_data import data_reader
from quark.onnx.calibration_data.checked_items import (
    Batch,
    DataReader,
    checked_items,
    first_samples,
    model_inputs,
    sample_count,
)
from quark.onnx.config.algorithm import AutoMixprecisionConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import QLayerConfig, QTensorConfig
from quark.onnx.errors import ConfigError, DataError, UnsupportedError
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.sessions import batch_is_free
from quark.onnx.mixed_precision.allocation import Choice, Path
from quark.onnx.mixed_precision.auto_mixprecision import Layers, auto_target, ignored_fields
from quark.onnx.mixed_precision.formats import Formats
from quark.onnx.mixed_precision.search import Search, formats_of
from quark.onnx.mixed_precision.sensitivities import PlainModel, sensitivities, with_finetuned_weights
from quark.onnx.mixed_precision.target import Target
from quark.onnx.mixed_precision.target_judge import Judge
from quark.onnx.qdq.number_formats import qdq_opset
from quark.onnx.quantization.quantization_run import Prepared, QuantizationRun
from quark.onnx.quantization.reference_model import ReferenceModel
from quark.onnx.quantization.run_options import engine_for, samples_needed
from quark.onnx.report.model_sizes import constant_bytes
from quark.onnx.report.report import Report
from quark.onnx.resume.saved_run import NothingSaved
from quark.onnx.system.resources import PhaseClock

__all__ = ["TargetedRun"]

_LOG = logging.getLogger(__name__)
_EVERY = 4  # of so many samples one is set apart to measure on
_FEWEST = 16  # samples: of fewer, each is needed to fit
_FEW = 16  # samples that single quantizers are measured on
_MEASURED_BITS = 8  # weights of more bits make a quarter of the error for each


class TargetedRun:
    """Quantizes a model to a target.

    Args:
        config: the formats and algorithms to start from.
        target: what is wanted; None: what its AutoMixprecisionConfig says.
        original: the float model.
        reader: the calibration data.
        other: as for `QuantizationRun.prepared`.
    """

    def __init__(
        self,
        config: QConfig,
        target: Target | None,
        original: onnx.ModelProto,
        reader: DataReader,
        other: ReferenceModel | None,
    ) -> None:
        self._began = time.monotonic()
        if any(map(is_random, original.graph.node)):
            raise UnsupportedError("the model draws random numbers: what a format costs cannot be told from chance")
        self._layers, self._ignored = Layers(), tuple[str, ...]()
        most = config.auto_mixprecision.data_size if target is None and config.auto_mixprecision is not None else 0
        if target is None:
            assert config.auto_mixprecision is not None
            target, self._layers = auto_target(config, config.auto_mixprecision)
            self._ignored = ignored_fields(config.auto_mixprecision)
        self._target = target.with_candidates(config.weight_spec, config.activation_spec)
        assert self._target.weights is not None
        assert self._target.activations is not None
        self._weights, self._activations = self._target.weights, self._target.activations
        if self._activations[0] is None:
            raise ConfigError("Target.activations: got (None,), expected a spec among them: float is no quantization")
        # What stays in float is chosen here.
        algorithms = [one for one in config.algo_config if not isinstance(one, AutoMixprecisionConfig)]
        options = {**config.extra_options, "MaxFloatShare": 0.0}
        self._config = _config_like(config, config.global_config, algorithms, options)
        self._original, self._other, self._engine = original, other, engine_for(config)
        kinds = [spec.data_type for spec in (*self._weights, *self._activations) if spec is not None]
        self._opset = qdq_opset(kinds)
        self._base: tuple[Formats, tuple[onnx.ModelProto, Report]] | None = None
        self._split(reader, most or None)

    def _split(self, reader: DataReader, most: int | None) -> None:
        """The samples to fit to, and those to measure on, at most so many."""
        original, inputs = self._original, model_inputs(self._original)
        given = checked_items(reader, inputs)
        items = [_copied(item) for item in first_samples(given, samples_needed(self._config))]
        self._held_out = True
        if self._target.validation is not None:
            found = checked_items(data_reader(self._target.validation, original), inputs)
            self._fitted, self._measured = items, [_copied(item) for item in found]
        else:
            self._fitted, self._measured = _divided(items, divisible=batch_is_free(original))
            if not self._measured:
                self._measured, self._held_out = items, False
        self._measured = list(first_samples(iter(self._measured), most))
        if not self._measured:
            raise DataError("there is no data to measure the target on: Target.validation is empty")

    def best(self, keep: Callable[[onnx.ModelProto], None]) -> tuple[onnx.ModelProto, Report]:
        """The model with the fewest bits that reaches the target, or the nearest to it.

        Args:
            keep: takes each that is better than all before.
        """
        judge = Judge(self._target, self._original, self._measured, self._engine)
        choices = self._choices()
        if self._config.fast_finetune is not None:
            choices = self._as_finetuned(choices, judge)
        search = Search(Path(choices), self._quantized, judge, self._target, self._opset, keep, self._began)
        found = search.run()
        said = search.report(self._held_out)
        report = replace(found.report, target=said, ignored=(*self._ignored, *found.report.ignored))
        if not said.reached:
            warning = f"{said}: all formats that may be used are tried, or the time was up"
            _LOG.warning(warning)
            report = replace(report, warnings=(warning, *report.warnings))
        return found.model, report

    def _quantized(self, formats: Formats) -> tuple[onnx.ModelProto, Report]:
        if self._base is not None and self._base[0] == formats:
            return self._base[1]
        return self._run(self._config, formats)[1:]

    def _run(self, config: QConfig, formats: Formats) -> tuple[Prepared, onnx.ModelProto, Report]:
        run = QuantizationRun(config, self._engine, PhaseClock(), formats)
        prepared = run.prepared(self._original, data_reader(self._fitted, self._original), self._other)
        return prepared, *run.quantized(self._original, prepared, NothingSaved())

    def _choices(self) -> list[Choice]:
        """What each tensor may have, with the errors alone."""
        measured = [spec for spec in self._weights if spec.data_type.bits <= _MEASURED_BITS] or list(self._weights[:1])
        plain = [self._plain(spec) for spec in measured]
        few = list(first_samples(iter(self._fitted), _FEW))
        return sensitivities(plain, self._weights, self._activations, few, self._engine)

    def _plain(self, weight: QTensorConfig) -> PlainModel:
        layer = QLayerConfig(input_tensors=self._activations[0], weight=weight, bias=self._config.global_config.bias)
        config = _config_like(self._config, layer, [], self._config.extra_options)
        prepared, quantized, _ = self._run(config, Formats(opset=self._opset))
        specs = prepared.specs
        fixed = frozenset({*specs.activations, *specs.weights, *config.extra_options.get("TensorQuantOverrides", ())})
        return PlainModel(weight, prepared.model, quantized, fixed, self._layers.names(prepared.model))

    def _as_finetuned(self, choices: Sequence[Choice], judge: Judge) -> list[Choice]:
        """The choices with the part of weights' errors that finetuning leaves, by the model with the fewest bits."""
        formats = formats_of(choices, Path(choices).at(0), self._opset)
        self._base = formats, self._quantized(formats)
        model = self._base[1][0]
        return with_finetuned_weights(choices, judge.judged(model, constant_bytes(model)).error)


def _config_like(config: QConfig, layer: QLayerConfig, algorithms: Sequence[object], options: object) -> QConfig:
    """A configuration with other specs, algorithms and options."""
    return QConfig(
        layer,
        config.specific_layer_config,
        config.layer_type_config,
        config.exclude,
        algorithms,  # type: ignore[arg-type]
        config.use_external_data_format,
        extra_options=options,  # type: ignore[arg-type]
    )


def _copied(item: Batch) -> Batch:
    return {name: np.array(array) for name, array in item.items()}


def _divided(items: Sequence[Batch], *, divisible: bool) -> tuple[list[Batch], list[Batch]]:
    """The samples to fit to, and every fourth to measure on; none of the latter where there are too few."""
    if sum(map(sample_count, items)) < _FEWEST:
        return list(items), []
    if len(items) >= _FEWEST or not divisible:
        apart = list(items[_EVERY - 1 :: _EVERY])
        return [item for at, item in enumerate(items) if at % _EVERY != _EVERY - 1], apart
    fitted, apart = list[Batch](), list[Batch]()
    for item in items:
        chosen = np.arange(sample_count(item)) % _EVERY == _EVERY - 1
        for batches, rows in ((fitted, ~chosen), (apart, chosen)):
            if rows.any():
                batches.append({name: np.ascontiguousarray(array[rows]) for name, array in item.items()})
    return fitted, apart
