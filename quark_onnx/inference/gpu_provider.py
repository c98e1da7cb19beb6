"""The execution provider by which onnxruntime uses a GPU: NVIDIA's or AMD's, as the one that is installed has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnxruntime as ort

from quark.onnx.errors import UnsupportedError

__all__ = ["GpuProvider", "gpu_provider"]


@dataclass(frozen=True)
class GpuProvider:
    """A provider of onnxruntime.

    Attributes:
        package: what is installed in place of onnxruntime to have it.
        options: of the provider, beside the GPU's number.
    """

    name: str
    package: str
    options: Mapping[str, int] = field(default_factory=dict)


# The first that is there counts.
_PROVIDERS = (
    # TF32 would round what layers are tuned towards to 11 bits.
    GpuProvider("CUDAExecutionProvider", "onnxruntime-gpu", {"use_tf32": 0}),
    GpuProvider("ROCMExecutionProvider", "onnxruntime-rocm"),
    GpuProvider("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
)


def gpu_provider() -> GpuProvider:
    """The provider for GPUs that this onnxruntime has.

    Raises:
        UnsupportedError: it has none.
    """
    offered = ort.get_available_providers()
    for provider in _PROVIDERS:
        if provider.name in offered:
            return provider
    raise UnsupportedError(
        f"this onnxruntime has {' and '.join(offered)} and none of {', '.join(p.name for p in _PROVIDERS)}: install "
        "onnxruntime-gpu (NVIDIA) or onnxruntime-migraphx (AMD) in place of onnxruntime, with what it needs"
    )
