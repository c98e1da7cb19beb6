"""The report of a run that only quantizes."""

from __future__ import annotations

import logging
from dataclasses import replace

import onnx

from quark.onnx.quantization.plain_quantization import PlainQuantization
from quark.onnx.report.report import Report
from quark.onnx.system.resources import PhaseClock, peak_rss_mib
from quark.onnx.whole_model.layer_errors import layer_errors_or_note
from quark.onnx.whole_model.whole_model import WholeModel
from quark.onnx.whole_model.workplace import Workplace

__all__ = ["plain_report"]

_LOG = logging.getLogger(__name__)


def plain_report(
    model: onnx.ModelProto, made: PlainQuantization, place: Workplace, clock: PhaseClock, samples: int
) -> Report:
    """How near the quantized model is to the float one. Where onnxruntime cannot run it, a warning says so: it may be
    meant for something else.

    Args:
        model: the float model; `made` may be of what CLEConfig made of it.
        samples: calibration samples seen.
    """
    report = Report(algorithm=None, samples=samples, phases=clock.seconds, memory=clock.memory)
    with clock.phase("compare"):
        try:
            whole = WholeModel(model, "float model", place)
            whole.start(made.quantized)
            found = whole.result(None)
        except Exception as error:  # whatever it is: the model is complete, and nothing of the caller's runs here
            warning = f"the quantized model was not compared with the float model: {type(error).__name__}: {error}"
            _LOG.warning(warning)
            return replace(report, warnings=(warning,), peak_rss_mib=peak_rss_mib())
    with clock.phase("compare layers"):
        errors, unmeasured = layer_errors_or_note(made.float_model, made.quantized, place.apart.compared, place.engine)
    return replace(
        report,
        layer_errors=errors,
        end_to_end=found.end_to_end,
        warnings=found.warnings,
        notes=(*found.notes, *unmeasured),
        peak_rss_mib=peak_rss_mib(),
    )
