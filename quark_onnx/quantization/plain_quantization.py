"""From a prepared float model and calibration data to a Q/DQ model: ranges, scales, Q/DQ nodes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from quark.onnx.calibration.assumed_biases import with_assumed_biases
from quark.onnx.calibration.calibrate import Calibration, calibrate
from quark.onnx.calibration.lost_parts import lost_parts
from quark.onnx.calibration.weight_range import weight_scales
from quark.onnx.calibration_data.checked_items import Batch, sample_count
from quark.onnx.calibration_data.joining import CanJoin
from quark.onnx.inference.sessions import BatchMerging, Engine
from quark.onnx.layers.bias_reach import with_biases_in_reach
from quark.onnx.layers.weight_layers import WeightLayer, weight_layers
from quark.onnx.model_files.quantized_form import is_quantized
from quark.onnx.qdq.insert_qdq import QdqModel, calibration_tensors, qdq_model
from quark.onnx.quantization.tensor_specs import TensorSpecs
from quark.onnx.resume.saved_run import NothingSaved
from quark.onnx.sensitivity.kept_in_float import kept_in_float
from quark.onnx.system.progress import PhaseProgress
from quark.onnx.system.resources import PhaseClock

__all__ = ["Keep", "PlainQuantization", "PlainQuantizer"]

_LOG = logging.getLogger(__name__)

Keep = Callable[[Iterator[Batch], onnx.ModelProto, CanJoin], Iterator[Batch]]  # passes calibration items on


@dataclass(frozen=True, eq=False)
class PlainQuantization:
    """A model after quantization, before anything is tuned.

    Attributes:
        float_model: what was quantized, with biases that int32 can hold.
        quantized: with Q/DQ nodes.
        calibration: ranges and scales.
        warnings: of what is lost; not logged yet.
        notes: tensors that stay in float, and why.
    """

    float_model: onnx.ModelProto
    quantized: onnx.ModelProto
    calibration: Calibration
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PlainQuantizer:
    """Calibrates prepared float models, and inserts Q/DQ nodes.

    Attributes:
        few: some samples of the data, to see what single quantizers do.
        saved: keeps the first calibration of the run.
        engine: runs the models.
        clock: measures the phases.
    """

    few: Sequence[Batch]
    saved: NothingSaved
    engine: Engine
    clock: PhaseClock

    def quantized(
        self, model: onnx.ModelProto, specs: TensorSpecs, items: Iterator[Batch], keep: Keep | None = None
    ) -> PlainQuantization:
        """The model, which is not changed, with Q/DQ nodes.

        Args:
            items: the calibration data.
            keep: takes what finetuning needs of all items, also of those behind the last one to calibrate with.

        Raises:
            DataError: the model cannot run on the data, or it is not that of the run which is kept.
        """
        with self.clock.phase("prepare"):
            tensors = calibration_tensors(model, specs.qdq_options())
        with self.clock.phase("calibrate"):
            calibration = self._calibrate(model, specs, tensors, items, keep)
            model, clipped = with_biases_in_reach(model, calibration.ranges, specs.scope.quantized)
            calibration = _in_float(_with_own_scales(calibration, model, specs, self.engine), specs.in_float)

        def insert(calibration: Calibration) -> QdqModel:
            options = replace(specs.qdq_options(), without_range=frozenset(calibration.without_range))
            assumed = with_assumed_biases(model, calibration.bias_shifts)
            return qdq_model(assumed, calibration.ranges, calibration.weights, options)

        with self.clock.phase("insert Q/DQ"):
            kept = kept_in_float(model, calibration, insert, self.few, self.engine, specs.max_float_share)
        calibration, inserted = kept.calibration, kept.inserted
        lost = lost_parts(model, specs.scope.quantized, calibration.ranges, specs.calibration_settings().range_of)
        return PlainQuantization(
            model,
            inserted.model,
            calibration,
            warnings=(*clipped, *kept.warnings, *lost, *_warnings_of_nothing(inserted.model)),
            notes=(*kept.notes, *inserted.notes, *_notes_of_ranges(model, calibration)),
        )

    def _calibrate(
        self, model: onnx.ModelProto, specs: TensorSpecs, tensors: list[str], items: Iterator[Batch], keep: Keep | None
    ) -> Calibration:
        layers = _quantized_layers(model, specs)
        with PhaseProgress("Calibrating samples", None) as progress:

            def watched(items: Iterator[Batch]) -> Iterator[Batch]:
                for item in items:
                    yield item
                    progress.advance(sample_count(item))

            items = watched(items)
            can_join = BatchMerging(model, self.engine).is_exact
            if keep is not None:
                items = keep(items, model, can_join)
            items = _first(items, specs.options.get("CalibDataSize"), drain=keep is not None)
            settings = specs.calibration_settings()
            return self.saved.calibration(
                items, lambda items: calibrate(model, items, can_join, tensors, layers, settings, self.engine)
            )


def _with_own_scales(found: Calibration, model: onnx.ModelProto, specs: TensorSpecs, engine: Engine) -> Calibration:
    """The calibration with the parameters that follow from weights and biases themselves."""
    layers = _quantized_layers(model, specs)
    own = weight_scales(model, layers, specs.weight_ranges(layers), threads=engine.threads)
    return replace(found, weights=found.weights | own)


def _in_float(found: Calibration, tensors: Collection[str]) -> Calibration:
    """Without the ranges of activations that stay in float."""
    if not tensors:
        return found
    return replace(
        found,
        ranges={name: limits for name, limits in found.ranges.items() if name not in tensors},
        without_range=found.without_range | dict.fromkeys(tensors, "the target needs it"),
    )


def _quantized_layers(model: onnx.ModelProto, specs: TensorSpecs) -> list[WeightLayer]:
    return [layer for layer in weight_layers(model) if layer.node_name in specs.scope.quantized]


def _first(items: Iterator[Batch], samples: int | None, *, drain: bool) -> Iterator[Batch]:
    """The items that hold the first samples; with `drain` the others are read too, for whoever passes them on."""
    seen = 0
    for item in items:
        if samples is None or seen < samples:
            yield item
        elif not drain:
            return
        seen += sample_count(item)


def _warnings_of_nothing(quantized: onnx.ModelProto) -> tuple[str, ...]:
    """Whether nothing was quantized."""
    if is_quantized(quantized):
        return ()
    return ("nothing is quantized: the model has none of the operators to quantize, or all of them are excluded",)


def _notes_of_ranges(model: onnx.ModelProto, calibration: Calibration) -> tuple[str, ...]:
    """The tensors that stay in float, as they have no range."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found = []
    for tensor, why in calibration.without_range.items():
        maker = f", which {makers[tensor].op_type} {makers[tensor].name!r} makes," if tensor in makers else ""
        found.append(f"tensor {tensor!r}{maker} stays in float, and what shares its scale: {why}")
    for line in found:
        _LOG.info(line)
    return tuple(found)
