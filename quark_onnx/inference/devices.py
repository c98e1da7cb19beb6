"""The devices that options name: tried before any work, with the CPU in their place where the user allows it."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort

from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.supported import IgnoredOption
from quark.onnx.config.validate import problem
from quark.onnx.errors import UnsupportedError
from quark.onnx.inference.sessions import CUDA, Engine, session

__all__ = ["engine_on_device"]

_FALLBACK = "QUARK_ONNX_DEVICE_FALLBACK"  # environment variable; "1": the CPU is used instead, with a warning

_PROBE = '<ir_version: 8, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Abs(x) }'


def engine_on_device(config: FastFinetuneConfig, engine: Engine) -> tuple[Engine, tuple[IgnoredOption, ...]]:
    """What runs the models of one finetuning: an engine on the device that the options name.

    Returns:
        The engine, and the options in whose place the CPU is used, to be reported to the user.

    Raises:
        UnsupportedError: a device cannot be used, and the environment variable QUARK_ONNX_DEVICE_FALLBACK is not 1.
    """
    engine = replace(engine, device=config.infer_device)
    reasons = {"optim_device": _why_no_solver(config.optim_device), "infer_device": _why_no_engine(engine)}
    unusable = {keyword: reason for keyword, reason in reasons.items() if reason}
    if unusable and os.environ.get(_FALLBACK) != "1":
        keyword, reason = next(iter(unusable.items()))
        instead = f"'cpu': {reason}. {_FALLBACK}=1 makes this a warning and uses the CPU"
        raise UnsupportedError(problem(f"{type(config).__name__}.{keyword}", getattr(config, keyword), instead))
    if "infer_device" in unusable:
        engine = replace(engine, device="cpu")
    return engine, tuple(
        IgnoredOption(keyword, getattr(config, keyword), f"{reason}. The CPU is used")
        for keyword, reason in unusable.items()
    )


def _why_no_solver(device: str) -> str:
    return "" if device == "cpu" else "layers are tuned on the CPU only so far"


def _why_no_engine(engine: Engine) -> str:
    """Why onnxruntime cannot run on the engine's device; empty when it can."""
    if engine.device == "cpu":
        return ""
    offered = ort.get_available_providers()
    if CUDA not in offered:
        return (
            f"this onnxruntime has {' and '.join(offered)} and no {CUDA}: install onnxruntime-gpu in place of "
            "onnxruntime, with the CUDA and cuDNN that it needs"
        )
    try:
        session(onnx.parser.parse_model(_PROBE), engine).run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        return (
            f"{error}: see that there is such a GPU, with a driver, and the CUDA and cuDNN that onnxruntime-gpu needs"
        )
    return ""
