"""infer_device and optim_device: a GPU that is not there is an error, or the CPU if the user says so."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import cache
from typing import Any, NoReturn

import onnx
import onnxruntime
import pytest
from small_models import Reader, mlp, samples

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, Report, UInt8Spec, finetune
from quark.onnx.errors import UnsupportedError
from quark.onnx.preparation.prepare import prepare

FALLBACK = "QUARK_ONNX_DEVICE_FALLBACK"
LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
CPU = ["CPUExecutionProvider"]
Session = onnxruntime.InferenceSession
Run = Callable[..., tuple[onnx.ModelProto, Report]]


class UnreadReader:
    def get_next(self) -> NoReturn:
        raise AssertionError("the reader is asked before the device")


def reader() -> Reader:
    return Reader(samples(mlp(), 20))


def quantize(algorithm: AdaRoundConfig) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm]))
    return quantizer.quantize_model(mlp(), None, reader()), quantizer.report


@cache
def quantized() -> onnx.ModelProto:
    return ModelQuantizer(QConfig(LAYER)).quantize_model(mlp(), None, reader())


def tune(algorithm: AdaRoundConfig) -> tuple[onnx.ModelProto, Report]:
    return finetune(mlp(), quantized(), None, reader(), algorithm)


STARTS = {
    "ModelQuantizer": lambda algorithm: ModelQuantizer(QConfig(LAYER, algo_config=[algorithm])),
    "finetune": lambda algorithm: finetune("no such file", "nor this", None, UnreadReader(), algorithm),
}


def no_provider(patch: pytest.MonkeyPatch) -> str:
    patch.setattr(onnxruntime, "get_available_providers", lambda: CPU)
    return (
        "this onnxruntime has CPUExecutionProvider and none of CUDAExecutionProvider, ROCMExecutionProvider, "
        "MIGraphXExecutionProvider: install onnxruntime-gpu"
    )


def offer(patch: pytest.MonkeyPatch, session: Callable[..., Session], provider: str = "CUDAExecutionProvider") -> None:
    patch.setattr(onnxruntime, "get_available_providers", lambda: [provider, *CPU])
    patch.setattr(onnxruntime, "InferenceSession", session)
    patch.setattr("quark.onnx.inference.sessions._Session", session)


def silently_the_cpu(patch: pytest.MonkeyPatch) -> str:
    """As onnxruntime does where it does not find CUDA's libraries."""
    offer(patch, lambda *args, **options: Session(*args, **options | {"providers": CPU}))
    return "onnxruntime's CUDAExecutionProvider does not start on 'cuda:1'"


def no_such_gpu(patch: pytest.MonkeyPatch) -> str:
    reason = "CUDA failure 101: invalid device ordinal"

    def opened(*args: Any, providers: list[Any], **options: Any) -> Session:
        if providers != CPU:
            raise RuntimeError(reason)
        return Session(*args, providers=providers, **options)

    offer(patch, opened)
    return reason


FAULTS = {fault.__name__: fault for fault in (no_provider, silently_the_cpu, no_such_gpu)}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_gpu_that_cannot_be_used_is_an_error_before_any_work(
    fault: Callable[[pytest.MonkeyPatch], str], start: Callable[[AdaRoundConfig], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = fault(monkeypatch)
    with pytest.raises(UnsupportedError) as caught:
        start(AdaRoundConfig(infer_device="cuda:1"))
    message = str(caught.value)
    assert message.startswith("AdaRoundConfig.infer_device: got 'cuda:1', expected 'cpu': ")
    assert reason in message
    assert "onnxruntime-gpu" in message
    assert message.endswith("QUARK_ONNX_DEVICE_FALLBACK=1 makes this a warning and uses the CPU")


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("value", [None, "0", ""])
def test_a_gpu_that_no_solver_finds_is_an_error(
    value: str | None, start: Callable[[AdaRoundConfig], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv(FALLBACK, value)
    monkeypatch.delenv("QUARK_ONNX_OPENCL_DEVICE", raising=False)
    expected = r"AdaRoundConfig.optim_device: got 'cuda:77', expected 'cpu': there is no (GPU 77|OpenCL): .*QUARK"
    with pytest.raises(UnsupportedError, match=expected):
        start(AdaRoundConfig(optim_device="cuda:77"))


@pytest.mark.parametrize("run", [quantize, tune])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_the_cpu_instead_is_one_warning_each(
    fault: Callable[[pytest.MonkeyPatch], str],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected, _ = run(AdaRoundConfig())
    reason = fault(monkeypatch)
    monkeypatch.setenv(FALLBACK, "1")
    monkeypatch.delenv("QUARK_ONNX_OPENCL_DEVICE", raising=False)
    with caplog.at_level(logging.WARNING, logger="quark.onnx"):
        model, report = run(AdaRoundConfig(infer_device="cuda:1", optim_device="cuda:77"))
    assert model.graph == expected.graph
    layers, models = report.ignored
    assert re.fullmatch(r"optim_device='cuda:77' has no effect: there is no (GPU 77|OpenCL): .*The CPU is used", layers)
    assert models.startswith("infer_device='cuda:1' has no effect: ")
    assert reason in models
    assert models.endswith(". The CPU is used")
    assert [record.getMessage() for record in caplog.records if "device" in record.getMessage()] == [layers, models]


@pytest.mark.parametrize("run", [quantize, tune])
@pytest.mark.parametrize(
    ("device", "number", "provider", "options"),
    [
        ("cuda", 0, "CUDAExecutionProvider", {"use_tf32": 0}),
        ("cuda:3", 3, "ROCMExecutionProvider", {}),
        ("cuda:1", 1, "MIGraphXExecutionProvider", {}),
    ],
)
def test_all_models_run_on_the_gpu_that_is_asked_for(
    device: str, number: int, provider: str, options: dict[str, int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU says that it is a GPU: the result is that of the CPU, and what was asked for is noted."""
    asked: list[Any] = []

    class Noted(Session):
        def __init__(self, *args: Any, providers: list[Any], **options: Any) -> None:
            asked.append(providers)
            super().__init__(*args, providers=CPU, **options)

        def get_providers(self) -> list[str]:
            return [provider, *CPU]

    expected, _ = run(AdaRoundConfig())
    offer(monkeypatch, Noted, provider)
    prepare(mlp())
    checks = len(asked)  # of the model, on the CPU
    asked.clear()
    model, report = run(AdaRoundConfig(infer_device=device))
    assert model.graph == expected.graph
    assert report.ignored == ()
    on_gpu = [providers for providers in asked if providers != CPU]
    assert len(asked) - len(on_gpu) == checks
    assert len(on_gpu) > 2 * len(report.layers)
    expected_provider = (provider, {"device_id": number, **options})
    assert all(providers == [expected_provider, "CPUExecutionProvider"] for providers in on_gpu)
