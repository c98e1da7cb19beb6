"""The documented entry point, `ModelQuantizer`, and `finetune` for models that another tool quantized."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, overload

from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.supported import check_supported
from quark.onnx.errors import ConfigTypeError
from quark.onnx.inference.devices import engine_on_device
from quark.onnx.own_errors import only_own_errors
from quark.onnx.quantization.run_options import engine_for

if TYPE_CHECKING:
    import onnx

    from quark.onnx.calibration_data.any_data import Data
    from quark.onnx.mixed_precision.target import Target
    from quark.onnx.model_files.model_file import ModelLike
    from quark.onnx.report.report import Report

__all__ = ["ModelQuantizer", "finetune"]


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
            engine_on_device(config.fast_finetune, engine_for(config))
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
        target: Target | None = None,
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
            target: what the quantized model is to keep: formats that reach it with the fewest bits are looked for, by
                quantizing and finetuning several times. Each better model goes to `model_output` at once.

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
        from quark.onnx.quantization.calls import quantized_model

        self.report = None
        returned, self.report = quantized_model(
            self.config, model_input, model_output, calibration_data_reader, calibration_data_path, save_dir, target
        )
        return returned


@overload
def finetune(
    float_model: ModelLike,
    quantized_model: ModelLike,
    output: str | os.PathLike[str],
    reader: Data,
    config: FastFinetuneConfig | QConfig,
    *,
    save_dir: str | os.PathLike[str] | None = None,
) -> Report: ...


@overload
def finetune(
    float_model: ModelLike,
    quantized_model: ModelLike,
    output: None,
    reader: Data,
    config: FastFinetuneConfig | QConfig,
    *,
    save_dir: str | os.PathLike[str] | None = None,
) -> tuple[onnx.ModelProto, Report]: ...


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
    from quark.onnx.quantization.calls import finetuned_model

    delivered, report = finetuned_model(float_model, quantized_model, output, reader, config, save_dir)
    return report if delivered is None else (delivered, report)
