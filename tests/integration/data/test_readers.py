"""Calibration data readers: any batch size, several inputs, integers, fixed shapes, reused memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader
from small_models import (
    MODELS,
    Arrays,
    Reader,
    Weights,
    build,
    embedding,
    mean_squared_error,
    mlp,
    samples,
    separable_cnn,
)

from quark.onnx import (
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)

pytestmark = pytest.mark.sets_apart

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())


def quantize(
    model: onnx.ModelProto, reader: object, algorithm: AdaRoundConfig | None = None
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm or AdaRoundConfig()]))
    quantized = quantizer.quantize_model(model, None, reader)
    return quantized, quantizer.report


@pytest.mark.parametrize("name", MODELS)
def test_the_batch_size_of_the_reader_does_not_matter(name: str) -> None:
    model = MODELS[name]()
    data = samples(model, 40)
    by_one, report = quantize(model, Reader(data))
    assert report.samples == 40
    for batch in (3, 40):  # 40 is not a multiple of 3: the last item is smaller
        by_batch, report = quantize(model, Reader(data, batch=batch))
        assert report.samples == 40
        assert by_batch == by_one


def test_the_order_of_the_samples_is_all_that_counts() -> None:
    model = separable_cnn()
    data = samples(model, 200)  # several internal batches, cut elsewhere
    by_one, _ = quantize(model, Reader(data))
    by_batch, _ = quantize(model, Reader(data, batch=7))
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(by_one, by_batch, unseen) < 0.1 * mean_squared_error(model, by_one, unseen)


def test_several_inputs_of_which_one_is_integer() -> None:
    model = embedding()
    data = samples(model, 40)
    assert {array.dtype.kind for array in data.values()} == {"i", "f"}
    tuned, report = quantize(model, Reader(data, batch=3))
    assert [layer.name for layer in report.layers] == ["hidden", "project"]
    assert mean_squared_error(model, tuned, samples(model, 64, seed=1)) < 0.03


def test_a_model_of_fixed_batch_one() -> None:
    fixed, free = separable_cnn(batch="1"), separable_cnn()
    data = samples(free, 40)
    tuned, report = quantize(fixed, Reader(data))
    assert report.samples == 40
    assert report.end_to_end.held_out
    unseen = samples(free, 32, seed=1)
    plain = ModelQuantizer(QConfig(LAYER)).quantize_model(fixed, None, Reader(data))
    for model in (tuned, plain):
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
        model.graph.input[0].CopyFrom(free.graph.input[0])
        model.graph.output[0].CopyFrom(free.graph.output[0])
    assert mean_squared_error(free, tuned, unseen) < 0.75 * mean_squared_error(free, plain, unseen)


@pytest.mark.parametrize("limit", [8, 11])
def test_a_model_of_fixed_batch_four(limit: int) -> None:
    model = separable_cnn(batch="4")
    data = samples(separable_cnn(), 40)
    _, report = quantize(model, Reader(data, batch=4), AdaRoundConfig(data_size=limit))
    assert report.samples == 40
    result = report.end_to_end
    assert (result.samples, result.held_out) == (4, True), "items are set apart whole: the eighth of ten"
    assert {sum(layer.rows) for layer in report.layers if layer.name == "classes"} == {8}


def test_a_model_of_fixed_batch_four_gets_at_least_one_batch() -> None:
    model = separable_cnn(batch="4")
    _, report = quantize(model, Reader(samples(separable_cnn(), 8), batch=4), AdaRoundConfig(data_size=1))
    assert {sum(layer.rows) for layer in report.layers if layer.name == "stem"} == {4 * 8 * 8}


@pytest.mark.parametrize("batch", [1, 3, 16, 40])
def test_data_size_counts_samples(batch: int) -> None:
    model = mlp()  # one row a sample: the report's rows are samples
    data = samples(model, 40)
    first, _ = quantize(model, Reader(data), AdaRoundConfig(data_size=16))
    tuned, report = quantize(model, Reader(data, batch=batch), AdaRoundConfig(data_size=16))
    assert {sum(layer.rows) for layer in report.layers} == {16}
    assert report.samples == 40, "calibration sees all of them"
    assert tuned.graph == first.graph


def test_data_size_beyond_the_data_is_all_of_it() -> None:
    model = mlp()
    data = samples(model, 20)
    assert (
        quantize(model, Reader(data), AdaRoundConfig(data_size=21))[0].graph == quantize(model, Reader(data))[0].graph
    )


def test_finetune_sees_the_first_samples_only() -> None:
    model = mlp()
    data = samples(model, 40)
    order = np.arange(40)  # 16 samples, two that are set apart, and the others that are not in another order
    others = (order >= 18) & (order % 8 != 7)
    order[others] = order[others][::-1]
    later = {name: array[order] for name, array in data.items()}
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))

    def tuned(data: Arrays, **options: int) -> onnx.ModelProto:
        config = QConfig(layer, algo_config=[AdaRoundConfig(keep_worse=True, **options)])
        return ModelQuantizer(config).quantize_model(model, None, Reader(data))

    assert tuned(data, data_size=16) == tuned(later, data_size=16)
    assert tuned(data) != tuned(later)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_reader_that_reuses_its_memory(batch: int) -> None:
    model = separable_cnn()
    data = samples(model, 40)
    fresh, _ = quantize(model, Reader(data, batch=batch))
    assert quantize(model, Reader(data, batch=batch, reuse=True))[0] == fresh


def test_the_readers_arrays_are_not_changed() -> None:
    model = separable_cnn()
    data = samples(model, 20)
    copy = {name: array.copy() for name, array in data.items()}
    quantize(model, Reader(data, batch=20))
    np.testing.assert_array_equal(data["x"], copy["x"])


def test_arrays_that_are_not_contiguous() -> None:
    model = separable_cnn()
    data = samples(model, 20)
    turned = {name: np.asfortranarray(array) for name, array in data.items()}
    assert not turned["x"].flags.c_contiguous
    assert quantize(model, Reader(turned, batch=20))[0] == quantize(model, Reader(data))[0]


def test_read_only_arrays() -> None:
    model = separable_cnn()
    data = samples(model, 20)
    data["x"].flags.writeable = False
    quantize(model, Reader(data))


class OnnxruntimeReader(CalibrationDataReader):
    """As onnxruntime's documentation writes readers."""

    def __init__(self, data: Arrays) -> None:
        self._data = iter([{"x": row[None]} for row in data["x"]])

    def get_next(self) -> Arrays | None:
        return next(self._data, None)


class EmptyDictAtTheEnd:
    def __init__(self, data: Arrays) -> None:
        self._rows = list(data["x"])

    def get_next(self) -> Mapping[str, np.ndarray]:
        return {"x": self._rows.pop(0)[None]} if self._rows else {}


@pytest.mark.parametrize("reader", [OnnxruntimeReader, EmptyDictAtTheEnd])
def test_other_readers(reader: type) -> None:
    model = separable_cnn()
    data = samples(model, 20)
    assert quantize(model, reader(data))[0] == quantize(model, Reader(data))[0]


def test_the_reader_is_read_once() -> None:
    calls = []

    class Counting(Reader):
        def get_next(self) -> Arrays | None:
            item = super().get_next()
            calls.append(item is None)
            return item

    model = separable_cnn()
    quantize(model, Counting(samples(model, 20)))
    assert calls == [False] * 20 + [True]


def test_images_of_different_sizes() -> None:
    w = Weights(0)
    model = build(
        """(float[N,3,H,W] x) => (float[N,8,1,1] y) {
            [conv] t = Conv<pads=[1,1,1,1]>(x, conv_w, conv_b)
            [relu] r = Relu(t)
            [pool] y = GlobalAveragePool(r)
        }""",
        conv_w=w.conv(8, 3, 3, 3), conv_b=w.bias(8),
    )  # fmt: skip
    random = np.random.default_rng(0)
    items = [
        {"x": random.standard_normal((1, 3, h, width), dtype=np.float32)}
        for h, width in ((8, 8), (8, 8), (6, 10), (12, 5), (8, 8), (7, 7), (9, 9), (5, 12), (8, 8), (8, 8))
    ]

    class Images:
        def __init__(self) -> None:
            self.get_next = iter([*items, None]).__next__

    _, report = quantize(model, Images())
    assert report.samples == 10
    (layer,) = report.layers
    assert sum(layer.rows) == sum(item["x"][0, 0].size for item in items)


def test_an_input_that_is_no_batch() -> None:
    """A scalar beside the samples: items stand for themselves."""
    w = Weights(0)
    model = build(
        """(float temperature, float[N,8] x) => (float[N,4] y) {
            [gemm] t = Gemm<transB=1>(x, gemm_w, gemm_b)
            [divide] y = Div(t, temperature)
        }""",
        gemm_w=w.conv(4, 8), gemm_b=w.bias(4),
    )  # fmt: skip
    x = np.random.default_rng(0).standard_normal((40, 1, 8)).astype(np.float32)

    class Items:
        def __init__(self) -> None:
            self.get_next = iter([*({"temperature": np.array(2, np.float32), "x": row} for row in x), None]).__next__

    _, report = quantize(model, Items())
    assert report.samples == 40
    (layer,) = report.layers
    assert sum(layer.rows) == 35
