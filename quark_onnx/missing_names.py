"""Names of AMD Quark's public interface that are not here, and what to use instead."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["INSTEAD", "refuse_missing"]

_SEARCH = "try configurations in a loop, and compare quantizer.report.end_to_end"
_CALIBRATION = "ModelQuantizer calibrates; CalibMethod in a spec chooses the way"
_OPERATORS = "models have standard Q/DQ, which onnxruntime runs without operators of its own"

INSTEAD: Mapping[str, str] = {
    "quantize_static": "ModelQuantizer(config).quantize_model(model, output, reader)",
    "quantize_dynamic": "onnxruntime.quantization.quantize_dynamic; here ranges are constants of the model",
    "dump_model": "onnxruntime.quantization.qdq_loss_debug, or `quark-onnx compare`",
    "create_calibrator_power_of_two": _CALIBRATION,
    "create_calibrator_float_scale": _CALIBRATION,
    "calibrate_model": _CALIBRATION,
    "run_calibration": _CALIBRATION,
    "fake_calibration": _CALIBRATION,
    "AutoSearch": _SEARCH,
    "AutoSearchPro": _SEARCH,
    "SearchSpace": _SEARCH,
    "generate_all_configs": _SEARCH,
    "get_auto_search_config": _SEARCH,
    "_COP_DOMAIN": _OPERATORS,
    "_COP_VERSION": _OPERATORS,
    "VitisExtendedQuantizer": "ModelQuantizer",
    "algorithm": "quark.onnx.quantization.config.algorithm, which has the configurations of the algorithms",
    "optimization": "ModelQuantizer, which prepares models before it quantizes them",
    "auto_search": _SEARCH,
}


def refuse_missing(module: str, name: str) -> Exception:
    """The error of a module that is asked for a name that it does not have: to be raised by its `__getattr__`.

    An ImportError passes through `from module import name`, where Python would replace the text of an AttributeError.
    """
    if name in INSTEAD:
        return ImportError(f"{module}.{name} is AMD Quark's and not here. Use instead: {INSTEAD[name]}", name=name)
    return AttributeError(f"module {module!r} has no attribute {name!r}")
