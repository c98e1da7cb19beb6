"""optim_device on an OpenCL device: whole models, what the report says, and what goes wrong."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnx
import pytest
from opencl import PLACE, any_device
from small_models import Reader, build, initializers, mlp, residual_cnn, samples, transformer_block

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    _core,
    finetune,
)
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.errors import FinetuneError, UnsupportedError

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())
SOUGHT = "integers sought on the CPU"
TRAINED = "trained on the CPU, as "


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> _core.Device:
    found = any_device()
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    return found


def quantize(model: onnx.ModelProto, algorithm: FastFinetuneConfig) -> tuple[dict[str, np.ndarray], Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm]))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, 40)))
    assert quantizer.report is not None
    return initializers(quantized), quantizer.report


def integers_apart(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> tuple[int, int]:
    """How many 8-bit integers differ, of how many; none by more than one step."""
    weights = [name for name, value in a.items() if value.dtype == np.int8 and value.size > 1]
    differences = np.concatenate([(a[name].astype(int) - b[name]).ravel() for name in weights])
    assert np.abs(differences).max() <= 1
    return int(np.count_nonzero(differences)), differences.size


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("model", [mlp, residual_cnn])
@pytest.mark.parametrize("options", [{}, {"solver": "gradient", "num_iterations": 60}], ids=["auto", "gradient"])
def test_a_model_is_tuned_as_on_the_cpu(model: Any, options: dict[str, Any]) -> None:
    float_model = model()
    algorithm = AdaRoundConfig(keep_worse=True, **options)
    want, on_cpu = quantize(float_model, algorithm)
    have, report = quantize(float_model, AdaRoundConfig(keep_worse=True, optim_device="cuda:0", **options))
    differ, of = integers_apart(have, want)
    assert differ <= 0.01 * of  # near ties
    assert report.ignored == ()
    for layer, expected in zip(report.layers, on_cpu.layers, strict=True):
        assert layer.name == expected.name
        np.testing.assert_allclose(layer.before, expected.before, rtol=1e-2)  # of what layers before put in
        np.testing.assert_allclose(layer.after, expected.after, rtol=5e-2)
        if options:
            assert not any(note.startswith(TRAINED) for note in layer.notes)
        else:
            assert any(SOUGHT in note for note in layer.notes)


@pytest.mark.usefixtures("device")
def test_all_of_adaquant_and_mixed_inputs_run_there() -> None:
    algorithm = AdaQuantConfig(
        optim_device="cuda", solver="gradient", num_iterations=40, drop_ratio=0.5, update_bias=True, early_stop=True
    )
    _, report = quantize(residual_cnn(), algorithm)
    assert report.layers
    assert not [note for layer in report.layers for note in layer.notes]


@pytest.mark.usefixtures("device")
def test_layers_side_by_side_share_it() -> None:
    options: dict[str, Any] = {"solver": "gradient", "num_iterations": 40, "optim_device": "cuda:0", "parallel": True}
    first, _ = quantize(residual_cnn(), AdaRoundConfig(**options))
    second, _ = quantize(residual_cnn(), AdaRoundConfig(**options))
    assert integers_apart(first, second)[0] == 0


@pytest.mark.usefixtures("device")
def test_integers_are_sought_on_the_cpu() -> None:
    """With moments that the device makes."""
    _, report = quantize(transformer_block(), AdaRoundConfig(optim_device="cuda:0", num_iterations=20))
    assert all(any(SOUGHT in note for note in layer.notes) for layer in report.layers if layer.improved)


@pytest.mark.usefixtures("device")
def test_softmax_is_left_to_the_cpu() -> None:
    rng = np.random.default_rng(0)
    weight, data = rng.standard_normal((8, 5), np.float32), {"x": rng.standard_normal((40, 8), np.float32)}
    signature, end = "(float[N, 8] x) => (float[N, 5] y)", "y = Softmax<axis = 1>(z)"
    float_model = build(f"{signature} {{ z = MatMul(x, w) {end} }}", w=weight)
    dequantized = "d = DequantizeLinear(q, scale) z = MatMul(x, d)"
    integers = np.rint(weight / np.float32(0.4)).astype(np.int8)
    quantized = build(f"{signature} {{ {dequantized} {end} }}", q=integers, scale=np.float32(0.4))
    results = []
    for device in ("cpu", "cuda:0"):
        algorithm = AdaRoundConfig(solver="gradient", num_iterations=20, optim_device=device, keep_worse=True)
        model, report = finetune(float_model, quantized, None, Reader(data), algorithm)
        results.append((model.graph, report.layers[0].notes))
    (graph, _), (other, notes) = results
    assert graph == other
    assert notes == (f"{TRAINED}a device computes no softmax, and counts with 32 bits",)


# ---- what goes wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("QUARK_ONNX_OPENCL_DEVICE", "pocl", "give platform:device, two numbers, or unset it"),
        ("QUARK_ONNX_OPENCL_MIB", "0", "give a number of MiB from 1, or unset it"),
    ],
)
def test_wrong_settings_are_refused(name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    expected = f"the environment variable {name} is {value!r}: {says}"
    with pytest.raises(UnsupportedError, match=expected):
        ModelQuantizer(QConfig(LAYER, algo_config=[AdaRoundConfig(optim_device="cuda:0")]))


def small_device(index: int, *, platform: int, most_bytes: int) -> _core.Device:  # noqa: ARG001 (it takes its place)
    return DEVICE(index, platform=platform, most_bytes=3000)


DEVICE, DATA, LAYER_DATA = _core.Device, _core.TrainingData, _core.Layer


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("solver", ["least_squares", "gradient"])
def test_a_full_device_leaves_layers_to_the_cpu(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want, _ = quantize(mlp(), AdaRoundConfig(solver=solver, num_iterations=20))
    monkeypatch.setattr(_core, "Device", small_device)
    have, report = quantize(mlp(), AdaRoundConfig(solver=solver, num_iterations=20, optim_device="cuda:0"))
    assert integers_apart(have, want)[0] == 0
    assert all(
        "the device has too little memory" in "; ".join(layer.notes) for layer in report.layers if layer.improved
    )


class LostData:
    """Its device fails when it trains."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._data = DATA(*args, **options)

    def add(self, *arrays: Any) -> None:
        self._data.add(*arrays)

    def train(self, *args: Any, device: _core.Device | None = None, **options: Any) -> Any:
        if device is not None:
            raise _core.DeviceError("its cable was pulled")
        return self._data.train(*args, **options)


@pytest.mark.usefixtures("device")
def test_a_device_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "TrainingData", LostData)
    algorithm = AdaRoundConfig(optim_device="cuda:0", solver="gradient", num_iterations=20)
    expected = "the device of optim_device failed: its cable was pulled. Tune with optim_device='cpu', or set"
    with pytest.raises(FinetuneError, match=expected):
        quantize(mlp(), algorithm)


@pytest.mark.usefixtures("device")
def test_or_the_cpu_goes_on_where_it_may(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    want, _ = quantize(mlp(), AdaRoundConfig(solver="gradient", num_iterations=20))
    monkeypatch.setattr(_core, "TrainingData", LostData)
    monkeypatch.setenv("QUARK_ONNX_DEVICE_FALLBACK", "1")
    with caplog.at_level(logging.WARNING, logger="quark.onnx"):
        algorithm = AdaRoundConfig(optim_device="cuda:0", solver="gradient", num_iterations=20)
        have, report = quantize(mlp(), algorithm)
    assert integers_apart(have, want)[0] == 0
    note = f"{TRAINED}the device failed: its cable was pulled"
    assert all(note in layer.notes for layer in report.layers if layer.improved)
    assert sum(note in record.getMessage() for record in caplog.records) == len(report.layers)


class LostLayer:
    """Its device fails with the first data."""

    def __init__(self, *args: Any, device: _core.Device | None = None, **options: Any) -> None:
        self._layer, self._device = LAYER_DATA(*args, **options), device

    def feed(self, *arrays: Any) -> None:
        if self._device is not None:
            raise _core.DeviceError("its cable was pulled")
        self._layer.feed(*arrays)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


@pytest.mark.usefixtures("device")
def test_moments_that_are_lost_leave_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "Layer", LostLayer)
    algorithm = AdaRoundConfig(optim_device="cuda:0", solver="least_squares")
    with pytest.raises(FinetuneError, match="the device of optim_device failed: its cable was pulled"):
        quantize(mlp(), algorithm)
    monkeypatch.setenv("QUARK_ONNX_DEVICE_FALLBACK", "1")
    _, report = quantize(mlp(), algorithm)
    assert report.layers
    for layer in report.layers:
        assert not layer.accepted
        assert layer.reason.startswith("the device of optim_device failed while the layer's data was gathered: its")
