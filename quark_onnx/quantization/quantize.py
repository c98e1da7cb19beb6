"""`quantize`: one call for the usual case, beside the documented classes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, overload

from quark.onnx.config.algorithm import AdaRoundConfig
from quark.onnx.config.amd_quark.presets import get_default_config
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import Int8Spec, QLayerConfig, UInt8Spec
from quark.onnx.own_errors import only_own_errors
from quark.onnx.quantization.api import ModelQuantizer

if TYPE_CHECKING:
    import onnx

    from quark.onnx.calibration_data.any_data import Data
    from quark.onnx.calibration_data.images import ImagePreprocessing
    from quark.onnx.calibration_data.path_reader import Preprocess
    from quark.onnx.mixed_precision.target import Target
    from quark.onnx.model_files.model_file import ModelLike
    from quark.onnx.report.report import Report

__all__ = ["USUAL_CONFIG", "quantize"]

# Python's and the command line's `quantize` use it where no other is given.
USUAL_CONFIG = QConfig(QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])


@overload
def quantize(
    model: ModelLike,
    output: str | os.PathLike[str],
    data: Data,
    config: QConfig | str | None = None,
    *,
    preprocess: Preprocess | ImagePreprocessing | str | None = None,
    target: Target | None = None,
) -> Report: ...


@overload
def quantize(
    model: ModelLike,
    output: None,
    data: Data,
    config: QConfig | str | None = None,
    *,
    preprocess: Preprocess | ImagePreprocessing | str | None = None,
    target: Target | None = None,
) -> tuple[onnx.ModelProto, Report]: ...


@only_own_errors
def quantize(
    model: ModelLike,
    output: str | os.PathLike[str] | None,
    data: Data,
    config: QConfig | str | None = None,
    *,
    preprocess: Preprocess | ImagePreprocessing | str | None = None,
    target: Target | None = None,
) -> Report | tuple[onnx.ModelProto, Report]:
    """Quantize a float model, and finetune it unless the configuration says otherwise::

        report = quantize("model.onnx", "model_int8.onnx", "images", preprocess="imagenet")
        report = quantize("model.onnx", "model_int8.onnx", array)

    Args:
        model: path of an ONNX file, or a ModelProto; not changed.
        output: where the quantized model goes; None to get it back.
        data: for calibration and finetuning, in any form that `data_reader` takes: an array, a dict of arrays, items, a
            folder, a .npz file, a reader.
        config: a QConfig, or the name of a ready one ("XINT8_ADAROUND"). None: UInt8 activations, Int8 weights, each
            weight with the scale of the least output error, and AdaRound.
        preprocess: what becomes of the files of a folder: a name ("imagenet", "yolo", "caffe", "none"), an
            `ImagePreprocessing`, or a function from the path to an array.
        target: what the quantized model is to keep, as for `ModelQuantizer.quantize_model`.

    Returns:
        The report; with `output` None the quantized model and the report.

    Raises:
        OSError, ModelError, DataError, ConfigError, UnsupportedError: as `ModelQuantizer.quantize_model` does.
    """
    from quark.onnx.quantization.calls import usual_reader

    quantizer = ModelQuantizer(get_default_config(config) if isinstance(config, str) else config or USUAL_CONFIG)
    quantized = quantizer.quantize_model(model, output, usual_reader(data, model, preprocess), target=target)
    assert quantizer.report is not None
    return quantizer.report if quantized is None else (quantized, quantizer.report)
