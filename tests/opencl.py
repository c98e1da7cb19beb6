"""An OpenCL device for tests: the first of any kind, which may be the processor itself (pocl)."""

from __future__ import annotations

from functools import cache

import pytest

from quark.onnx import _core

PLACE = {"QUARK_ONNX_OPENCL_DEVICE": "0:0"}


@cache
def _found() -> _core.Device | str:
    try:
        return _core.Device(0, platform=0)
    except _core.DeviceError as error:
        if not str(error).startswith("there is no "):
            raise  # what is there must work
        return str(error)


def any_device() -> _core.Device:
    """Skips the test where there is none, with the reason."""
    found = _found()
    if isinstance(found, str):
        pytest.skip(found)
    return found
