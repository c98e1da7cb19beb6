"""A device of the core: what it computes is what the processor does, and what it cannot is told."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opencl import any_device
from reference.conv_cases import ConvCase, conv_cases, conv_transpose_cases
from reference.moments import Moments
from reference.training import Options
from reference.training_cases import CASES, TrainingCase, start_of

from quark.onnx import _core

ONE = _core.ThreadPool(1)
ADAROUND = Options(batch_size=4, iterations=20, learning_rate=0.05)
ADAQUANT = Options(batch_size=4, iterations=5, learning_rate=0.004)


# ---- moments -----------------------------------------------------------------------------------


def moments(case: ConvCase, y: np.ndarray, device: _core.Device | None) -> tuple[Moments, str]:
    layer = _core.Layer(
        case.x.shape[1] // case.conv.groups * int(np.prod(case.conv.kernel)),
        len(case.bias) // case.conv.groups,
        len(case.x),
        1 << 20,
        groups=case.conv.groups,
        conv=case.conv.core,
        device=device,
    )
    layer.feed(case.x, y, ONE)
    return Moments(*layer.moments(ONE, False)), layer.moments_by


@settings(max_examples=25)
@given(st.one_of(conv_cases(), conv_transpose_cases()))
def test_moments_of_any_convolution(case: ConvCase) -> None:
    device = any_device()
    sizes = [case.conv.outputs(axis, size) for axis, size in enumerate(case.x.shape[2:])]
    y = np.random.default_rng(0).standard_normal((len(case.x), len(case.bias), *sizes), np.float32)
    have, by = moments(case, y, device)
    want, alone = moments(case, y, None)
    assert alone == "cpu"
    assert by in {"device", "phases"}
    assert have.rows == want.rows
    x, y_size = (float(np.sqrt(of.max(initial=0))) for of in (want.gram, want.power))
    sizes_of = {"gram": x * x, "cross": x * y_size, "mean_x": x, "mean_y": y_size, "power": y_size**2}
    for name, size in sizes_of.items():  # what rounding is relative to
        np.testing.assert_allclose(getattr(have, name), getattr(want, name), rtol=0, atol=3e-7 * size, err_msg=name)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_moments_of_8_bits_are_exact(dtype: type[np.generic]) -> None:
    device = any_device()
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = np.random.default_rng(1).integers(low, high + 1, (300, 70)).astype(dtype)
    x[:200] = high  # the largest sums there are
    y = np.zeros((300, 3), np.float32)
    found = []
    for used in (device, None):
        layer = _core.Layer(70, 3, 300, 1 << 20, x_scale=0.1, x_zero_point=int(low), device=used)
        layer.feed(x, y, ONE)
        found.append(Moments(*layer.moments(ONE, False)))
    np.testing.assert_array_equal(found[0].gram, found[1].gram)
    np.testing.assert_array_equal(found[0].mean_x, found[1].mean_x)


# ---- the gradient loops ------------------------------------------------------------------------


def train(case: TrainingCase, options: Options, device: _core.Device | None, *, adaround: bool) -> dict[str, Any]:
    named: dict[str, Any] = {"method": "adaround" if adaround else "adaquant", **vars(options)}
    named["beta_start"], named["beta_end"] = named.pop("beta_range")
    named["step_positions"] = 0
    start = start_of(case.layer)
    return dict(case.core().train(start, _core.GradientOptions(**named), ONE, device=device))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("adaround", [True, False])
def test_steps_are_those_of_the_processor(name: str, adaround: bool) -> None:
    device, case = any_device(), CASES[name]
    options = replace(ADAROUND if adaround else ADAQUANT, update_bias=case.layer.bias is not None)
    have, want = train(case, options, device, adaround=adaround), train(case, options, None, adaround=adaround)
    assert have["on_device"]
    assert not want["on_device"]
    compared = len(want["losses"]) if adaround else 2  # AdaQuant's weights jump, as does what follows
    np.testing.assert_allclose(have["losses"][:compared], want["losses"][:compared], rtol=2e-4)
    np.testing.assert_allclose(have["before"], want["before"], rtol=1e-4)
    assert have["samples"] == want["samples"]
    again = train(case, options, device, adaround=adaround)
    for key, value in have.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_threads_share_a_device() -> None:
    device, case = any_device(), CASES["grouped"]
    results: list[dict[str, Any]] = []

    def work() -> None:
        results.append(train(case, ADAROUND, device, adaround=True))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results[1:]:
        np.testing.assert_array_equal(result["losses"], results[0]["losses"])


# ---- what goes wrong ---------------------------------------------------------------------------


def test_too_little_memory_is_a_memory_error_and_leaves_the_device_usable() -> None:
    any_device()
    small, case = _core.Device(0, platform=0, most_bytes=5000), CASES["grouped"]
    for _ in range(2):
        with pytest.raises(MemoryError, match="clCreateBuffer gave CL_OUT_OF_RESOURCES"):
            train(case, ADAROUND, small, adaround=True)
        assert not small.is_lost


def test_moments_go_on_without_a_device_that_is_full() -> None:
    any_device()
    layer = _core.Layer(70, 3, 300, 1 << 20, device=_core.Device(0, platform=0, most_bytes=5000))
    layer.feed(np.ones((300, 70), np.float32), np.ones((300, 3), np.float32), ONE)
    assert layer.moments_by == "memory"
    assert (Moments(*layer.moments(ONE, False)).gram == 1).all()


def test_a_device_that_is_not_there_is_named() -> None:
    any_device()
    with pytest.raises(_core.DeviceError, match=r"^there is no OpenCL platform 77: there are \d+$"):
        _core.Device(0, platform=77)
    with pytest.raises(_core.DeviceError, match=r"^there is no device 77: OpenCL finds \d+, on \d+ platforms$"):
        _core.Device(77, platform=0)
    with pytest.raises(_core.DeviceError, match=r"^there is no GPU 77: OpenCL finds \d+, on \d+ platforms$"):
        _core.Device(77)


def test_a_device_has_a_name() -> None:
    assert "driver" in any_device().name
    assert not any_device().is_lost


def test_only_devices_are_taken_for_one() -> None:
    with pytest.raises(TypeError, match="device: a Device or None is needed, not str"):
        _core.Layer(3, 2, 1, 10, device="cuda:0")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="device: a Device or None is needed, not int"):
        CASES["grouped"].core().train(
            start_of(CASES["grouped"].layer),
            _core.GradientOptions(**_options()),
            ONE,
            device=1,  # type: ignore[arg-type]
        )


def _options() -> dict[str, Any]:
    named: dict[str, Any] = {"method": "adaround", **vars(ADAROUND)}
    named["beta_start"], named["beta_end"] = named.pop("beta_range")
    return {**named, "step_positions": 0}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
def test_a_child_cannot_use_it() -> None:
    device = any_device()
    child = os.fork()
    if child == 0:
        try:
            train(CASES["grouped"], ADAROUND, device, adaround=True)
        except _core.DeviceError as error:
            os._exit(0 if "fork()" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
