"""Samples of any shape that the model takes: height, width and length may differ from sample to sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from small_models import Arrays, Weights, build, run

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)


class Items:
    """A reader over these items."""

    def __init__(self, items: Sequence[Arrays]) -> None:
        self._items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


def pictures() -> onnx.ModelProto:
    """Fully convolutional, with an activation whose loss is not quadratic: x (N, 3, H, W) to y (N, 4, H, W)."""
    w = Weights(0)
    return build(
        """(float[N,3,H,W] x) => (float[N,4,H,W] y) {
            [first] t1 = Conv<pads=[1,1,1,1]>(x, first_w, first_b)
            [prelu] t2 = PRelu(t1, slopes)
            [second] t3 = Conv<pads=[1,1,1,1], group=8>(t2, second_w, second_b)
            [relu] t4 = Relu(t3)
            [third] y = Conv(t4, third_w)
        }""",
        first_w=w.conv(8, 3, 3, 3), first_b=w.bias(8), slopes=np.full((8, 1, 1), 0.2),
        second_w=w.conv(8, 1, 3, 3), second_b=w.bias(8), third_w=w.conv(4, 8, 1, 1),
    )  # fmt: skip


def sequences() -> onnx.ModelProto:
    """x (N, length, 12) to y (N, length, 6)."""
    w = Weights(0)
    return build(
        """(float[N,S,12] x) => (float[N,S,6] y) {
            [first] m = MatMul(x, first_w) t1 = Add(m, first_b)
            [sigmoid] t2 = Sigmoid(t1)
            [second] y = MatMul(t2, second_w)
        }""",
        first_w=w.conv(16, 12).T, first_b=w.bias(16), second_w=w.conv(6, 16).T,
    )  # fmt: skip


def length_first() -> onnx.ModelProto:
    """As speech models have it: x (length, 12) to y (length, 6); one recording an item."""
    w = Weights(0)
    return build(
        """(float[S,12] x) => (float[S,6] y) {
            [first] t1 = Gemm(x, first_w, first_b)
            [relu] t2 = Relu(t1)
            [second] y = MatMul(t2, second_w)
        }""",
        first_w=w.conv(16, 12).T, first_b=w.bias(16), second_w=w.conv(6, 16).T,
    )  # fmt: skip


SHAPES = {
    pictures: [(1, 3, 8 + 2 * (i % 4), 9 + i % 3) for i in range(40)],
    sequences: [(1, 3 + i % 7, 12) for i in range(40)],
    length_first: [(3 + i % 7, 12) for i in range(40)],
}


def items(model: object, seed: int) -> list[Arrays]:
    random = np.random.default_rng(seed)
    return [{"x": random.standard_normal(shape).astype("f")} for shape in SHAPES[model]]


def quantized_and_report(
    model: onnx.ModelProto, data: list[Arrays], *algorithms: AdaRoundConfig | AdaQuantConfig
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms))
    return quantizer.quantize_model(model, None, Items(data)), quantizer.report


def error(float_model: onnx.ModelProto, model: onnx.ModelProto, data: list[Arrays]) -> float:
    return sum(float(((run(float_model, item)[0] - run(model, item)[0]) ** 2).sum()) for item in data)


@pytest.mark.parametrize("options", [{}, {"mem_opt_level": 2}, {"parallel": True}, {"output_qdq": True}], ids=str)
@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.__name__)
def test_samples_of_many_shapes(model: object, options: dict[str, object]) -> None:
    float_model = model()
    data, unseen = items(model, 0), items(model, 1)
    plain, _ = quantized_and_report(float_model, data)
    tuned, report = quantized_and_report(
        float_model, data, AdaRoundConfig(num_iterations=100, keep_worse=True, **options)
    )
    assert not report.skipped
    assert all(layer.rows[0] > 0 for layer in report.layers), "all took part"
    assert error(float_model, tuned, unseen) < error(float_model, plain, unseen)


@pytest.mark.parametrize("model", [pictures, sequences], ids=lambda model: model.__name__)
def test_the_gradient_solver_takes_one_shape_and_says_so(model: object) -> None:
    data = items(model, 0)
    config = AdaQuantConfig(solver="gradient", num_iterations=100)
    _, report = quantized_and_report(model(), data, config)
    for layer in report.layers:
        assert not layer.accepted
        assert "the gradient loops take samples of one shape, and the input's was (" in layer.reason
        assert "solver='auto' and 'least_squares' take any" in layer.reason
    one_shape = [item for item in data if item["x"].shape == data[0]["x"].shape]
    _, report = quantized_and_report(model(), one_shape, config)
    assert not any("one shape" in layer.reason for layer in report.layers)


def test_items_of_one_batch_and_of_several() -> None:
    """A reader may give batches of different size, of samples of different shape."""
    random = np.random.default_rng(0)
    shapes = [(1 + i % 3, 3, 8 + i % 2, 8) for i in range(24)]
    data = [{"x": random.standard_normal(shape).astype("f")} for shape in shapes]
    _, report = quantized_and_report(pictures(), data, AdaRoundConfig())
    assert report.samples == sum(shape[0] for shape in shapes)
    assert all(layer.accepted for layer in report.layers)
