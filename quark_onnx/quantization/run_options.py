"""What a run takes from the options of a configuration: threads and memory, samples, operators that are not fused."""

from __future__ import annotations

import os

from quark.onnx.config.qconfig import QConfig
from quark.onnx.inference.sessions import Engine
from quark.onnx.system.memory_limit import MemoryLimit

__all__ = ["engine_for", "samples_needed", "unfused"]


def engine_for(config: QConfig | None) -> Engine:
    """Threads and memory as the options say: by default, what the machine has for this process."""
    options = config.extra_options if config is not None else {}
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = options.get("MaxMemory")
    return Engine(options.get("NumThreads", processors), memory=MemoryLimit(None if most is None else most << 20))


def samples_needed(config: QConfig) -> int | None:
    """How many samples of the reader calibration and finetuning take together; None: all there are."""
    calibrated = config.extra_options.get("CalibDataSize")
    if calibrated is None or (config.bias_correction is not None and config.fast_finetune is None):
        return None
    return calibrated if config.fast_finetune is None else max(calibrated, config.fast_finetune.data_size)


def unfused(config: QConfig) -> tuple[str, ...]:
    """The operators that no pattern becomes."""
    operators = {"FuseGelu": "Gelu", "FuseLayerNorm": "LayerNormalization"}
    return tuple(name for option, name in operators.items() if not config.extra_options.get(option, True))
