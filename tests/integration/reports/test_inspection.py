"""inspect_model says before a run what the run does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import Reader, build, embedding, mlp, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CLEConfig,
    ConfigError,
    Int4Spec,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    UnsupportedError,
    inspect_model,
)
from quark.onnx.config.amd_quark.presets import PRESETS
from quark.onnx.config.supported import check_supported

USUAL = QLayerConfig(UInt8Spec(), weight=Int8Spec())
PER_CHANNEL = QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=QuantGranularity.Channel))
IN_BLOCKS = QLayerConfig(UInt8Spec(), weight=Int4Spec(quant_granularity=QuantGranularity.Group))

CASES = {
    "a convolutional net": (separable_cnn, QConfig(USUAL, algo_config=[AdaRoundConfig()])),
    "products": (mlp, QConfig(USUAL, algo_config=[AdaQuantConfig()])),
    "per channel": (separable_cnn, QConfig(PER_CHANNEL, algo_config=[AdaRoundConfig()])),
    "in blocks": (mlp, QConfig(IN_BLOCKS, algo_config=[AdaRoundConfig()], BlockSize=4)),
    "excluded layers": (separable_cnn, QConfig(USUAL, exclude=["stem"], algo_config=[AdaRoundConfig()])),
    "some types": (separable_cnn, QConfig(USUAL, algo_config=[AdaRoundConfig(target_op_type=["Gemm"])])),
    "an embedding": (embedding, QConfig(USUAL, algo_config=[AdaRoundConfig()])),
    "the loop": (embedding, QConfig(USUAL, algo_config=[AdaRoundConfig(solver="gradient", num_iterations=2)])),
    "equalised": (separable_cnn, QConfig(USUAL, algo_config=[CLEConfig(), AdaRoundConfig()])),
    "nothing tuned": (separable_cnn, QConfig(USUAL)),
}


@pytest.mark.parametrize(("make", "config"), CASES.values(), ids=CASES)
def test_it_says_what_the_run_does(make: object, config: QConfig) -> None:
    model = make()
    data = samples(model, 12)
    found = inspect_model(model, config, Reader(data))
    quantizer = ModelQuantizer(config)
    quantized = quantizer.quantize_model(model, None, Reader(data))
    report = quantizer.report
    assert [layer.name for layer in found.layers if layer.tuned] == [layer.name for layer in report.layers]
    if config.fast_finetune is not None:
        left = {layer.name: layer.reason for layer in found.layers if layer.reason}
        assert left == {layer.node: layer.reason for layer in report.skipped}
    assert found.algorithm == report.algorithm
    integers = {
        tensor.name.removesuffix("_quantized"): onnx.TensorProto.DataType.Name(tensor.data_type).lower()
        for tensor in quantized.graph.initializer
        if tensor.name.endswith("_quantized")
    }
    assert {layer.format for layer in found.layers if layer.tuned} <= set(integers.values())
    for layer, done in zip((layer for layer in found.layers if layer.tuned), report.layers, strict=True):
        assert (layer.inputs, layer.outputs) == (done.inputs, done.outputs)
        assert layer.positions * 12 == sum(done.rows)


def test_sizes_against_the_model() -> None:
    found = inspect_model(separable_cnn(), QConfig(PER_CHANNEL, algo_config=[AdaRoundConfig()]))
    weights = {node.name: node.input[1] for node in separable_cnn().graph.node if node.op_type in ("Conv", "Gemm")}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in separable_cnn().graph.initializer}
    for layer in found.layers:
        shape = shapes[weights[layer.name]]
        assert layer.weights == np.prod(shape)
        assert layer.inputs * layer.outputs == layer.weights
        assert layer.scales == layer.outputs
    assert found.measured_on == "random data"
    assert found.samples == 100
    assert found.estimate.seconds > 0
    assert found.estimate.memory_mib > 0


def test_more_data_takes_more_time_and_memory() -> None:
    config = QConfig(USUAL, algo_config=[AdaRoundConfig()])
    few, many = (inspect_model(separable_cnn(), config, samples(separable_cnn(), n)) for n in (10, 100_000))
    assert many.samples == 100_000
    assert many.estimate.seconds > few.estimate.seconds
    assert many.estimate.memory_mib > few.estimate.memory_mib


def test_nothing_is_read_beyond_the_first_items() -> None:
    taken = []

    def items() -> object:
        for item in samples(mlp(), 50)["x"]:
            taken.append(item)
            yield item

    inspect_model(mlp(), QConfig(USUAL), items())
    assert len(taken) < 10


def test_what_stays_in_float_and_what_means_nothing() -> None:
    model = build(
        "(float[N,4] x) => (float[N,4] y) { [product] h = MatMul(x, w)\n[s] c = Sin(h)\n[t] y = Cos(c) }",
        w=np.eye(4) + 0.1,
    )
    found = inspect_model(model, QConfig(USUAL, algo_config=[AdaRoundConfig(num_workers=4)], FoldRelu=True))
    assert found.in_float == {"Sin": 1, "Cos": 1}
    assert any(line.startswith("num_workers=4 has no effect") for line in found.ignored)
    assert any(line.startswith("extra_options['FoldRelu']=True has no effect") for line in found.ignored)


def test_errors_are_those_of_the_run() -> None:
    quantized = ModelQuantizer(QConfig(USUAL)).quantize_model(mlp(), None, samples(mlp(), 4)["x"])
    with pytest.raises(ModelError, match="quantized already"):
        inspect_model(quantized)
    with pytest.raises(ConfigError, match="did you mean"):
        inspect_model(separable_cnn(), QConfig(USUAL, exclude=["stm"]))
    with pytest.raises(UnsupportedError):
        inspect_model(mlp(), PRESETS["MX4"])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_that_can_be_carried_out(name: str) -> None:
    try:
        check_supported(PRESETS[name])
    except UnsupportedError:
        return
    assert any(layer.format for layer in inspect_model(separable_cnn(), PRESETS[name]).layers)
