"""Odd and broken models through both entry points, and errors that are not ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import Reader, samples, separable_cnn

import quark.onnx.quantization.plain_quantization
from quark.onnx import (
    AdaRoundConfig,
    DataError,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    finetune,
)


def reader(count: int = 12) -> Reader:
    return Reader(samples(separable_cnn(), count))


def quantize(model: onnx.ModelProto, data: object, algorithm: AdaRoundConfig | None = None) -> onnx.ModelProto:
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[algorithm] if algorithm else [])
    return ModelQuantizer(config).quantize_model(model, None, data)


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = [model.graph.node[i] for i in np.random.default_rng(seed).permutation(len(model.graph.node))]
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    return result


def values(model: onnx.ModelProto) -> dict[str, bytes]:
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}


def test_a_quantized_model_with_its_nodes_in_any_order_is_tuned_as_if_they_were_in_order() -> None:
    model = separable_cnn()
    static = quantize(model, reader())
    tuned, report = finetune(model, static, None, reader(), AdaRoundConfig())
    other, report_of_other = finetune(shuffled(model, 1), shuffled(static, 2), None, reader(), AdaRoundConfig())
    assert report.end_to_end.after.l2 < report.end_to_end.before.l2
    assert report_of_other.end_to_end == report.end_to_end
    assert values(other) == values(tuned)
    onnx.checker.check_model(other, full_check=True)


def test_a_float_model_with_its_nodes_in_any_order(tmp_path: Path) -> None:
    onnx.save(shuffled(separable_cnn(), 3), tmp_path / "m.onnx")
    assert values(quantize(tmp_path / "m.onnx", reader())) == values(quantize(separable_cnn(), reader()))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0.0, -1.0])
def test_a_scale_that_is_none_is_named(wrong: float) -> None:
    static = quantize(separable_cnn(), reader())
    scale = next(t for t in static.graph.initializer if t.name == "stem_w_scale")
    scale.CopyFrom(numpy_helper.from_array(np.full(tuple(scale.dims), wrong, np.float32), scale.name))
    with pytest.raises(ModelError, match=r"the scale 'stem_w_scale' of DequantizeLinear .* holds"):
        finetune(separable_cnn(), static, None, reader(), AdaRoundConfig())


class Raising:
    """A reader that fails at its second item."""

    def __init__(self, error: Exception) -> None:
        self._reader, self._error, self._count = reader(), error, 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        self._count += 1
        if self._count == 2:
            raise self._error
        return self._reader.get_next()


def test_finetune_reads_no_more_than_it_needs() -> None:
    class Endless:
        read = 0

        def get_next(self) -> dict[str, np.ndarray]:
            self.read += 1
            return samples(separable_cnn(), 2, seed=self.read)

    endless, model = Endless(), separable_cnn()
    _, report = finetune(model, quantize(model, reader()), None, endless, AdaRoundConfig(data_size=15))
    assert (endless.read, report.samples) == (8, 16)
    assert {sum(layer.rows) > 0 for layer in report.layers} == {True}


def test_the_class_of_a_reader() -> None:
    with pytest.raises(DataError, match=r"Reader is a class: give an instance, Reader\(\)"):
        finetune(separable_cnn(), separable_cnn(), None, Reader, AdaRoundConfig())


@pytest.mark.parametrize("error", [KeyError("mine"), ValueError("mine"), RuntimeError("mine"), ModelError("mine")])
def test_what_the_reader_raises_comes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        quantize(separable_cnn(), Raising(error), AdaRoundConfig())
    assert caught.value is error


def test_what_an_evaluator_raises_comes_through() -> None:
    error = KeyError("mine")

    def evaluator(_session: object) -> float:
        raise error

    with pytest.raises(KeyError) as caught:
        quantize(separable_cnn(), reader(), AdaRoundConfig(selective_update=True, evaluator=evaluator))
    assert caught.value is error


def test_what_lr_adjust_raises_comes_through() -> None:
    error = ValueError("mine")

    def adjust(_loss: float) -> float:
        raise error

    algorithm = AdaRoundConfig(solver="gradient", num_iterations=5, lr_adjust=adjust)
    with pytest.raises(ValueError, match="mine") as caught:
        quantize(separable_cnn(), reader(), algorithm)
    assert caught.value is error


def test_an_error_of_ours_names_the_node_and_asks_for_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            raise KeyError(node.op_type)

    monkeypatch.setattr(quark.onnx.quantization.plain_quantization, "weight_layers", broken)
    with pytest.raises(ModelError, match=r"^at node 'stem' \(Conv\): KeyError: 'Conv'.*please report it") as caught:
        quantize(separable_cnn(), reader(), AdaRoundConfig())
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_convolution_whose_strides_the_core_cannot_count_is_left_with_its_reason() -> None:
    model = separable_cnn()
    next(node for node in model.graph.node if node.name == "pw2").attribute.append(
        onnx.helper.make_attribute("strides", [2**31, 2**31])
    )
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(model, None, reader())
    assert {layer.node: "not tuned yet" in layer.reason for layer in quantizer.report.skipped} == {"pw2": True}
