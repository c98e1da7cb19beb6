"""The devices that options name: tried before any work, with the CPU in their place where the user allows it."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np
import onnx

from quark.onnx import _core
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.supported import IgnoredOption
from quark.onnx.config.validate import problem
from quark.onnx.errors import UnsupportedError
from quark.onnx.inference.gpu_provider import gpu_provider
from quark.onnx.inference.sessions import Engine, session

__all__ = ["FALLBACK", "engine_on_device", "falls_back"]

# Environment variables.
FALLBACK = "QUARK_ONNX_DEVICE_FALLBACK"  # "1": the CPU is used instead, with a warning
_PLACE = "QUARK_ONNX_OPENCL_DEVICE"  # "platform:device", counted from 0: of any kind, in place of the GPU that is named
_MEMORY = "QUARK_ONNX_OPENCL_MIB"  # how much memory of the device may be used

_PROBE = '<ir_version: 8, opset_import: ["": 13]> probe (float[1] x) => (float[1] y) { y = Abs(x) }'


def engine_on_device(config: FastFinetuneConfig, engine: Engine) -> tuple[Engine, tuple[IgnoredOption, ...]]:
    """What runs the models of one finetuning: an engine on the device that the options name.

    Returns:
        The engine, and the options in whose place the CPU is used, to be reported to the user.

    Raises:
        UnsupportedError: a device cannot be used, and the environment variable QUARK_ONNX_DEVICE_FALLBACK is not 1.
    """
    device, why_no_device = _solver_device(config.optim_device)
    engine = replace(engine, device=config.infer_device, solver_device=device)
    reasons = {"optim_device": why_no_device, "infer_device": _why_no_engine(engine)}
    unusable = {keyword: reason for keyword, reason in reasons.items() if reason}
    if unusable and not falls_back():
        keyword, reason = next(iter(unusable.items()))
        instead = f"'cpu': {reason}. {FALLBACK}=1 makes this a warning and uses the CPU"
        raise UnsupportedError(problem(f"{type(config).__name__}.{keyword}", getattr(config, keyword), instead))
    if "infer_device" in unusable:
        engine = replace(engine, device="cpu")
    return engine, tuple(
        IgnoredOption(keyword, getattr(config, keyword), f"{reason}. The CPU is used")
        for keyword, reason in unusable.items()
    )


def falls_back() -> bool:
    """Whether the CPU takes the place of a device that cannot be used, as the environment says."""
    return os.environ.get(FALLBACK) == "1"


def _solver_device(device: str) -> tuple[_core.Device | None, str]:
    """The device that is meant; or None, and why it cannot be used: empty for the CPU."""
    if device == "cpu":
        return None, ""
    place, limit = os.environ.get(_PLACE, ""), os.environ.get(_MEMORY, "")
    if place and not re.fullmatch("[0-9]{1,9}:[0-9]{1,9}", place):
        return None, f"the environment variable {_PLACE} is {place!r}: give platform:device, two numbers, or unset it"
    if limit and not re.fullmatch("[1-9][0-9]{0,8}", limit):
        return None, f"the environment variable {_MEMORY} is {limit!r}: give a number of MiB from 1, or unset it"
    most_bytes = int(limit or 0) << 20
    try:
        if place:
            platform, _, index = place.partition(":")
            return _core.Device(int(index), platform=int(platform), most_bytes=most_bytes), ""
        return _core.Device(int(device.partition(":")[2] or 0), most_bytes=most_bytes), ""
    except (_core.DeviceError, MemoryError, OverflowError) as error:
        return None, str(error) or "there is no memory for it"


def _why_no_engine(engine: Engine) -> str:
    """Why onnxruntime cannot run on the engine's device; empty when it can."""
    if engine.device == "cpu":
        return ""
    try:
        provider = gpu_provider()
    except UnsupportedError as error:
        return str(error)
    try:
        session(onnx.parser.parse_model(_PROBE), engine).run(None, {"x": np.zeros(1, np.float32)})
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        return f"{error}: see that there is such a GPU, with a driver, and what {provider.package} needs"
    return ""
