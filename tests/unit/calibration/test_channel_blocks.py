"""Tensors in onnxruntime's blocks of channels hold the values that they hold in their own order."""

from __future__ import annotations

import platform
import tempfile

import numpy as np
import onnx
import pytest
from reference.inner_tensors import inner_tensors
from small_models import MODELS, build

from quark.onnx.calibration import channel_blocks
from quark.onnx.calibration.channel_blocks import session_in_blocks
from quark.onnx.errors import ModelError
from quark.onnx.inference.sessions import Engine


def exposed(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model


def convolutions(channels: int) -> onnx.ModelProto:
    """Kinds of nodes that onnxruntime runs in blocks, and tensors that are both read in order and wanted."""
    rng = np.random.default_rng(0)
    return build(
        """(float[N,3,12,12] x) => (float[N,4] y) {
            a = Conv<pads=[1,1,1,1]>(x, wa, ba) r = Relu(a) d = Conv<pads=[1,1,1,1], group=groups>(r, wd)
            c = Conv(r, wc) s = Add(c, d) t = Relu(s) p = MaxPool<kernel_shape=[2,2]>(t) m = Sigmoid(p)
            q = AveragePool<kernel_shape=[2,2]>(t) h = GlobalMaxPool(q)
            g = GlobalAveragePool(p) f = Flatten(g) y = MatMul(f, wy)
        }""".replace("groups", str(channels)),
        wa=rng.standard_normal((channels, 3, 3, 3)),
        ba=rng.standard_normal(channels),
        wd=rng.standard_normal((channels, 1, 3, 3)),
        wc=rng.standard_normal((channels, channels, 1, 1)),
        wy=rng.standard_normal((channels, 4)),
    )


def skip_without_blocks() -> None:
    if platform.machine() not in ("x86_64", "AMD64"):  # there onnxruntime has blocks of 8 or 16 channels
        pytest.skip("this onnxruntime holds no tensors in blocks")


@pytest.mark.parametrize("channels", [16, 32, 48, 8, 20])
def test_the_values_are_the_same(channels: int):
    """Where a block has channels that the model has not, the tensor stays in order."""
    names = ["a", "r", "d", "c", "s", "t", "p", "m", "q", "h", "g", "f", "y"]
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 12), np.float32)
    model = exposed(convolutions(channels), names)
    expected = inner_tensors(model, {"x": x}, names)
    found = session_in_blocks(model, names, Engine(1))
    if found is None:
        skip_without_blocks()
        assert channels % 16
        return
    opened, held = found
    for name, value in zip(names, opened.run(held, {"x": x}), strict=True):
        assert value.shape == expected[name].shape
        np.testing.assert_allclose(np.sort(value, None), np.sort(expected[name], None), rtol=1e-4, atol=1e-5)


def test_some_are_held_in_blocks():
    found = session_in_blocks(exposed(convolutions(16), ["r", "t", "p"]), ["p", "t"], Engine(1))
    if found is None:
        skip_without_blocks()
    assert found is not None
    r, t, p = found[1]
    assert r == "r"
    assert (t, p) != ("t", "p")


def test_no_file_is_needed(monkeypatch: pytest.MonkeyPatch):
    model = exposed(convolutions(16), ["t"])
    if session_in_blocks(model, ["t"], Engine(1)) is None:
        skip_without_blocks()
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert session_in_blocks(model, ["t"], Engine(1)) is not None


@pytest.mark.parametrize("name", ["mlp", "conv1d"])
def test_nothing_in_blocks(name: str):
    model = MODELS[name]()
    assert session_in_blocks(model, [output.name for output in model.graph.output], Engine(1)) is None


def test_where_nothing_can_be_saved_there_are_none(monkeypatch: pytest.MonkeyPatch):
    def failing(*_: object, **__: object) -> None:
        raise ModelError("full disk")

    monkeypatch.setattr(channel_blocks, "session", failing)
    assert session_in_blocks(exposed(convolutions(16), ["r"]), ["r"], Engine(1)) is None
