"""Write the cures that help a quantized model into it, and see on other samples that they do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.checked_items import Batch, checked_items, first_samples, model_inputs, sample_count
from quark.onnx.diagnosis.analysis import CURED, SAMPLES, Analysis, analysis_of
from quark.onnx.diagnosis.cured_model import FLOAT, WIDE, cured_model
from quark.onnx.diagnosis.diagnosis import Diagnosis
from quark.onnx.errors import ModelError
from quark.onnx.inference.sessions import Engine, session
from quark.onnx.measures.deviation import Comparison, Deviation
from quark.onnx.model_files.model_file import ModelLike, load_model
from quark.onnx.model_files.saved_model import check_output_path, save_model
from quark.onnx.own_errors import only_own_errors
from quark.onnx.quantization.run_options import engine_for
from quark.onnx.report.model_sizes import constant_bytes
from quark.onnx.report.plain_data import to_plain
from quark.onnx.sensitivity.switched_model import Switch
from quark.onnx.whole_model.part_masks import masks_of_items

__all__ = ["CuredModel", "cure"]


@dataclass(frozen=True, kw_only=True)
class CuredModel:
    """What came of cures. Errors are mean squared error over variance, the mean of all outputs.

    Attributes:
        diagnosis: what was found, and the cures that were chosen.
        samples: that the two models were compared on.
        held_out: whether these are others than those that the cures were chosen on.
        before, after: the error of the quantized model, and with cures, as ONNX defines them.
        before_default, after_default: with onnxruntime's default optimisation.
        float_share, wide_share: how much of the activations, 0 to 1 of the values that go through quantizers, is in
            float now, and has 16 bits now.
        bytes_before, bytes_after: of the constants.
        refused: why nothing was written; "" where the cured model is.
    """

    diagnosis: Diagnosis
    samples: int = 0
    held_out: bool = False
    before: float
    after: float
    before_default: float = 0.0
    after_default: float = 0.0
    float_share: float = 0.0
    wide_share: float = 0.0
    bytes_before: int
    bytes_after: int
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is not a finite number is None."""
        plain: dict[str, Any] = to_plain(self)
        plain["diagnosis"] = self.diagnosis.to_dict()
        return plain


@only_own_errors
def cure(
    float_model: ModelLike,
    quantized_model: ModelLike,
    output: str | os.PathLike[str] | None,
    data: Data,
    *,
    samples: int = SAMPLES,
    cured: int = CURED,
) -> CuredModel | tuple[onnx.ModelProto, CuredModel]:
    """Write the cures that `analyse` recommends into a Q/DQ model of any tool: floats or 16 bits for activations,
    floats or a scale per channel for weights.

    They are chosen on the first samples and judged on as many that follow, if there are some. Where the cured model is
    no better there, as ONNX defines it or as onnxruntime runs it by default, nothing is written, and `refused` says
    why.

    Args:
        float_model, quantized_model, data, samples, cured: as for `analyse`.
        output: where the cured model goes, all of it or nothing; None to get it back.

    Returns:
        What was done; with `output` None the cured model too: the quantized one where cures were refused.

    Raises:
        OSError: a path cannot be read or written.
        ModelError, UnsupportedError, DataError: as `analyse` does.
    """
    if output is not None:
        check_output_path(output, float_model, quantized_model)
    given = load_model(float_model, role="float model")
    items = [
        {name: array.copy() for name, array in item.items()}
        for item in first_samples(checked_items(data_reader(data, given), model_inputs(given)), 2 * samples)
    ]
    analysis, notes = analysis_of(given, quantized_model, items, samples)
    diagnosis = analysis.diagnosis(cured, notes)
    model, result = _judged(given, analysis, diagnosis, *_others(items, samples))
    if output is None:
        return model, result
    if not result.refused:
        save_model(model, Path(output), external_data=False)
    return result


def _others(items: Sequence[Batch], samples: int) -> tuple[Sequence[Batch], bool]:
    """The items behind those with the first samples, and that they are others; all of them where there are none."""
    seen = 0
    for at, item in enumerate(items):
        if seen >= samples:
            return items[at:], True
        seen += sample_count(item)
    return items, False


def _judged(
    float_model: onnx.ModelProto, analysis: Analysis, diagnosis: Diagnosis, items: Sequence[Batch], held_out: bool
) -> tuple[onnx.ModelProto, CuredModel]:
    """The cured model, or the quantized one where that is no worse."""
    quantized, size = analysis.quantized, constant_bytes(analysis.quantized)
    if not analysis.chosen:
        why = "no cure of single quantizers takes a twentieth of the error away"
        return quantized, CuredModel(
            diagnosis=diagnosis, before=diagnosis.error, after=diagnosis.error, bytes_before=size, bytes_after=size,
            refused=why,
        )  # fmt: skip
    model = cured_model(analysis.model, quantized, analysis.chosen)
    engine = engine_for(None)
    runs = _Runs(float_model, items, engine)
    before, after = (runs.deviation(one, fuse_qdq=False).error for one in (quantized, model))
    defaults = [runs.deviation(one, fuse_qdq=True).error for one in (quantized, model)]
    why = ""
    if not after < before:
        why = f"the cured model's error is {after:.3g}, that of the quantized model {before:.3g}"
    elif not defaults[1] < defaults[0]:
        why = (
            f"as onnxruntime runs it by default the cured model's error is {defaults[1]:.3g}, that of the quantized "
            f"model {defaults[0]:.3g}"
        )
    elements = analysis.damage.elements
    shares = {
        name: sum(
            elements[one.switch.name] for one in analysis.chosen if one.name == name and isinstance(one.switch, Switch)
        )
        / (sum(elements.values()) or 1)
        for name in (FLOAT, WIDE)
    }
    result = CuredModel(
        diagnosis=diagnosis,
        samples=sum(map(sample_count, items)),
        held_out=held_out,
        before=before,
        after=after,
        before_default=defaults[0],
        after_default=defaults[1],
        float_share=shares[FLOAT],
        wide_share=shares[WIDE],
        bytes_before=size,
        bytes_after=constant_bytes(model),
        refused=why,
    )
    return (quantized if why else model), result


class _Runs:
    """The float model's outputs, to compare others with.

    Args:
        items: the data.
        engine: runs the models.
    """

    def __init__(self, model: onnx.ModelProto, items: Sequence[Batch], engine: Engine) -> None:
        self._items, self._engine = items, engine
        self._names = [output.name for output in model.graph.output]
        run = session(model, engine)
        self._float = [run.run(self._names, item) for item in items]
        self._parts = masks_of_items(model, items, engine)

    def deviation(self, model: onnx.ModelProto, *, fuse_qdq: bool) -> Deviation:
        """How far a model's outputs, in the same order, are from them.

        Raises:
            ModelError: onnxruntime cannot load or run it.
        """
        run, comparison = session(model, self._engine, fuse_qdq=fuse_qdq), Comparison(self._names)
        names = [output.name for output in model.graph.output]
        for want, item, parts in zip(self._float, self._items, self._parts, strict=True):
            try:
                have = run.run(names, item)
            except Exception as error:  # onnxruntime's exceptions have no base of their own
                raise ModelError(f"onnxruntime cannot run the model: {error}") from error
            comparison.add(want, have, parts)
        return comparison.deviation()
