"""Measure what every quantizer of a Q/DQ model does to its outputs, and what the model gains without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import onnx

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.checked_items import Batch, checked_items, first_samples, model_inputs
from quark.onnx.config.algorithm import TUNABLE_OP_TYPES
from quark.onnx.diagnosis.cured_model import CHANNEL, FLOAT, WIDE, ChosenCure
from quark.onnx.diagnosis.diagnosis import Cure, Diagnosis, Finding
from quark.onnx.errors import DataError, ModelError, UnsupportedError
from quark.onnx.graph.random_nodes import is_random
from quark.onnx.inference.exposed_tensors import ExposedTensors
from quark.onnx.inference.sessions import Engine
from quark.onnx.measures.deviation import LOST
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.quantized_form import is_quantized
from quark.onnx.own_errors import only_own_errors
from quark.onnx.plan.build import build_plan
from quark.onnx.plan.float_form import matching_form
from quark.onnx.preparation.prepare import prepared_forms
from quark.onnx.qdq.constant_quantizers import with_integer_constants
from quark.onnx.quantization.run_options import engine_for
from quark.onnx.sensitivity.damage import Damage
from quark.onnx.sensitivity.switched_model import Switch
from quark.onnx.sensitivity.weight_switch import WeightSwitch, weight_switches
from quark.onnx.system.progress import PhaseProgress

__all__ = ["CURED", "SAMPLES", "Analysis", "analyse", "analysis_of"]

SAMPLES = 16
CURED = 20  # findings whose cures are measured
_HELPS = 0.05  # of the model's error: cures with less gain are none
_NO_WORSE = 1.01  # times the error
_NEARLY = 0.9  # of the harm
_TAIL = 99.9  # per cent of the values
_FAR = 8.0  # times: ranges so far apart are told of
_SAME = 1.1  # the sum of the parts is the model where the error of both differs by no more


@only_own_errors
def analyse(
    float_model: ModelLike, quantized_model: ModelLike, data: Data, *, samples: int = SAMPLES, cured: int = CURED
) -> Diagnosis:
    """Find what a quantized model suffers from: any Q/DQ model, of any tool.

    Every quantizer of an activation, and the weights of every layer, are put into the float model by themselves; the
    harm that they do is measured at its outputs. Of those that do most, the cures are measured as well, with everything
    else quantized: floats, 16 bits over the same range, one scale for each channel of a weight.

    Args:
        float_model: what was quantized.
        quantized_model: the Q/DQ model that was made from it.
        data: in any form that `data_reader` takes; a few samples are enough.
        samples: the first so many are run, once for each quantizer and cure.
        cured: of so many quantizers the cures are measured.

    Raises:
        OSError: a path cannot be read.
        ModelError: a model is invalid, the float model is quantized, or the other one is not.
        UnsupportedError: a model draws random numbers, so that two runs differ.
        DataError: the data does not fit, or there is none.
    """
    analysis, notes = analysis_of(float_model, quantized_model, data, samples)
    return analysis.diagnosis(cured, notes)


def analysis_of(
    float_model: ModelLike, quantized_model: ModelLike, data: Data, samples: int
) -> tuple[Analysis, tuple[str, ...]]:
    """What `analyse` measures with, and notes on how the float model was prepared. It raises what `analyse` does."""
    engine = engine_for(None)
    given, model = load_model(float_model, role="float model"), load_model(quantized_model, role="quantized model")
    if is_quantized(given):
        raise ModelError("the float model is quantized: give the model that was quantized, then the Q/DQ model")
    if not is_quantized(model):
        raise ModelError("the quantized model has no QuantizeLinear and DequantizeLinear: there is nothing to analyse")
    if any(map(is_random, given.graph.node)):
        raise UnsupportedError("the model draws random numbers: two runs of it cannot be compared")
    items = first_samples(checked_items(data_reader(data, given), model_inputs(given)), samples)
    few = [{name: array.copy() for name, array in item.items()} for item in items]
    if not few:
        raise DataError("there is no data: the models must run on a few samples")
    forms, notes = prepared_forms(given, few, engine)
    model = with_integer_constants(model)
    form = matching_form(forms, model, TUNABLE_OP_TYPES)
    return Analysis(form, model, few, engine), notes


class Analysis:
    """The measurements.

    Args:
        model: the float model, as it was when it was quantized.
        quantized: the Q/DQ model.
        items: the data.
        engine: runs the models.

    Attributes:
        model, quantized: the two models.
        damage: of its quantizers.
        chosen: the cures that help at once, as `diagnosis` found them.
    """

    def __init__(
        self, model: onnx.ModelProto, quantized: onnx.ModelProto, items: Sequence[Batch], engine: Engine
    ) -> None:
        self.model, self.quantized, self._items, self._engine = model, quantized, items, engine
        plan = build_plan(model, quantized, TUNABLE_OP_TYPES)
        self._weights = weight_switches(model, quantized, plan.layers, items[0], engine)
        self.damage = Damage(model, quantized, items, engine, self._weights)
        self._all: tuple[Switch | WeightSwitch, ...] = (*self.damage.switches, *self._weights)
        self.chosen: tuple[ChosenCure, ...] = ()

    def diagnosis(self, cured: int, notes: tuple[str, ...]) -> Diagnosis:
        """All that is found.

        Args:
            cured: of so many quantizers the cures are measured.
            notes: of what happened before.
        """
        with PhaseProgress("Measuring quantizers", len(self._all) + min(cured, len(self._all))) as progress:
            error, gain = self._error(self._all), dict[str, float]()
            for switch in self._all:
                gain[switch.name] = _less(error, self.damage.expected(switch, self._all).error)
                progress.advance(1)
            # The errors of a model that is destroyed do not add up.
            by = gain if error < LOST else {switch.name: self._error([switch]) for switch in self._all}
            worst_first = sorted(self._all, key=lambda switch: -by[switch.name])
            facts, cures = self._facts(worst_first[:cured]), dict[str, tuple[Cure, ...]]()
            for switch in worst_first[:cured]:
                cures[switch.name] = tuple(self._cures(switch, gain[switch.name]))
                progress.advance(1)
        self.chosen, left = self._together(worst_first[:cured], cures)
        measured = {name: found[-1].measured for name, found in cures.items()}
        worst_first.sort(key=lambda switch: -measured.get(switch.name, -math.inf))  # keeps the order of all others
        return Diagnosis(
            samples=self.damage.samples,
            error=error,
            activations=self._error(self.damage.switches),
            weights=self._error(self._weights),
            findings=tuple(
                self._finding(switch, gain[switch.name], cures.get(switch.name, ()), facts.get(switch.name, ()))
                for switch in worst_first
            ),
            cured=left,
            cures=tuple((_name(cure.switch), cure.name) for cure in self.chosen),
            notes=(*notes, *self._what_is_left_out(error)),
        )

    def _together(
        self, worst_first: Sequence[Switch | WeightSwitch], cures: dict[str, tuple[Cure, ...]]
    ) -> tuple[tuple[ChosenCure, ...], float]:
        """The cures that help at once, and the error left.

        One quantizer may hide what another does, as two in a row: so each is cured behind those that do more alone, and
        one that changes nothing by itself counts as soon as a later one does.
        """
        whole = error = self._error(self._all)
        on, fine = list(self._all), list[Switch | WeightSwitch]()
        tried, chosen, best = list[ChosenCure](), tuple[ChosenCure, ...](), error
        for switch in worst_first:
            cure = _mildest(cures[switch.name])
            others = on if cure.name != FLOAT else [other for other in on if other is not switch]
            finer = [*fine, switch] if cure.name != FLOAT else fine
            after = self._error(others, finer)
            if not after <= error * _NO_WORSE:
                continue
            on, fine, error = others, finer, after
            tried.append(ChosenCure(switch, cure.name))
            if best - error > _HELPS * whole:
                chosen, best = tuple(tried), error
        return chosen, best

    def _error(self, on: Sequence[Switch | WeightSwitch], fine: Sequence[Switch | WeightSwitch] = ()) -> float:
        return self.damage.deviation(on, fine).error

    def _cures(self, switch: Switch | WeightSwitch, gain: float) -> Iterator[Cure]:
        """The cures, with those that keep integers first.

        Args:
            gain: what floats should bring about.
        """
        alone, whole = self._error([switch]), self._error(self._all)
        if isinstance(switch, Switch) or switch.fine is not None:
            name = WIDE if isinstance(switch, Switch) else CHANNEL
            left = self._error([switch], [switch])
            part = _less(alone, left) / alone if math.isfinite(left) and 0 < alone < math.inf else float(left < alone)
            after = self._error(self._all, [switch])
            yield Cure(name, gain * part, _less(whole, after), self._standard_error(self._all, [switch]))
        others = [other for other in self._all if other is not switch]
        yield Cure(FLOAT, gain, _less(whole, self._error(others)), self._standard_error(others))

    def _standard_error(self, on: Sequence[Switch | WeightSwitch], fine: Sequence[Switch | WeightSwitch] = ()) -> float:
        """What a gain over the whole model differs by between samples, over the root of their number."""
        before, after = self.damage.sample_errors(self._all), self.damage.sample_errors(on, fine)
        gains = before - after
        if len(gains) < 2 or not np.isfinite(gains).all():
            return math.inf
        return float(gains.std(ddof=1) / math.sqrt(len(gains)))

    def _finding(
        self, switch: Switch | WeightSwitch, gain: float, cures: tuple[Cure, ...], facts: tuple[str, ...]
    ) -> Finding:
        if isinstance(switch, WeightSwitch):
            kind, count, total = "weights", switch.elements, sum(one.elements for one in self._weights)
        else:
            elements = self.damage.elements
            kind, count, total = "activation", elements[switch.name], sum(elements.values())
        return Finding(
            name=_name(switch),
            kind=kind,
            tensors=switch.tensors,
            share=count / (total or 1),
            alone=self._error([switch]),
            gain=gain,
            cures=cures,
            facts=facts,
        )

    def _facts(self, switches: Sequence[Switch | WeightSwitch]) -> dict[str, tuple[str, ...]]:
        """What may be the reason, by switch: ranges under one scale, outliers, channels far apart."""
        found = {s.name: tuple(_facts_of_weights(s)) for s in switches if isinstance(s, WeightSwitch)}
        activations = [switch for switch in switches if isinstance(switch, Switch)]
        names = [name for switch in activations for name in switch.tensors]
        values = ExposedTensors(self.model, names, self._engine)(self._items[0]) if names else {}
        for switch in activations:
            found[switch.name] = tuple(_facts_of_values({name: np.asarray(values[name]) for name in switch.tensors}))
        return found

    def _what_is_left_out(self, error: float) -> Iterator[str]:
        """Where the quantizers that were switched are not all that the model has."""
        names = [output.name for output in self.quantized.graph.output]
        whole = self.damage.deviation_of(ExposedTensors(self.quantized, names, self._engine), names).error
        if not error / _SAME <= whole <= error * _SAME:
            yield (
                f"the quantizers that were looked at make an error of {error:.3g} together, the quantized model one of "
                f"{whole:.3g}: it has others, or computes something else"
            )


def _mildest(cures: Sequence[Cure]) -> Cure:
    """The first one that should take nearly all of the harm away; floats do."""
    return next(cure for cure in cures if cure.name == FLOAT or cure.predicted >= _NEARLY * cures[-1].predicted)


def _less(before: float, after: float) -> float:
    return 0.0 if before == after else before - after  # both may be infinite


def _name(switch: Switch | WeightSwitch) -> str:
    return switch.name if isinstance(switch, WeightSwitch) else switch.tensors[0]


def _facts_of_weights(switch: WeightSwitch) -> Iterator[str]:
    if switch.fine is not None and switch.spread >= _FAR:
        yield f"one scale for channels of which the largest is {switch.spread:.3g} times the median one"


def _facts_of_values(values: dict[str, np.ndarray]) -> Iterator[str]:
    ranges = {name: float(np.abs(x).max()) for name, x in values.items() if x.size}
    if len(ranges) > 1 and max(ranges.values()) >= _FAR * min(ranges.values()):
        least, most = min(ranges, key=ranges.__getitem__), max(ranges, key=ranges.__getitem__)
        yield f"one scale for {least!r}, up to {ranges[least]:.3g}, and {most!r}, up to {ranges[most]:.3g}"
    for name, x in values.items():
        tail = float(np.percentile(np.abs(x), _TAIL)) if x.size else 0.0
        if 0 < _FAR * tail <= ranges[name]:
            yield f"{_TAIL} % of {name!r} is below {tail:.3g}, the largest value is {ranges[name]:.3g}"
