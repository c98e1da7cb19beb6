"""select_max_mem_layer: only the layer whose input and float output need the most memory is finetuned."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from reference.inner_tensors import inner_tensors
from small_models import MODELS, Arrays, Reader, Weights, build, initializers, samples, separable_cnn

import quark.onnx
from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.report.report import Report

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))
ONLY_LARGEST = AdaRoundConfig(select_max_mem_layer=True)


class Items(Reader):
    """Items of any shapes."""

    def __init__(self, items: Iterable[Arrays]) -> None:
        self._items = iter(items)


def quantized(
    model: onnx.ModelProto, algorithm: AdaRoundConfig | None, reader: Reader
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=[algorithm] if algorithm else []))
    return quantizer.quantize_model(model, None, reader), quantizer.report


def layer_bytes(model: onnx.ModelProto, items: Iterable[Arrays]) -> dict[str, int]:
    """The bytes of inputs of 8 bits and of float outputs, by node."""
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    sizes = dict.fromkeys((node.name for node in layers), 0)
    for item in items:
        tensors = inner_tensors(model, item, [n for node in layers for n in (node.input[0], node.output[0])])
        for node in layers:
            sizes[node.name] += tensors[node.input[0]].size + 4 * tensors[node.output[0]].size
    return sizes


@pytest.mark.parametrize("options", [{}, {"mem_opt_level": 2}, {"solver": "gradient", "num_iterations": 50}], ids=str)
@pytest.mark.parametrize("name", ["separable", "mlp", "conv1d", "embedding"])
def test_one_layer_is_left_and_the_others_say_why(name: str, options: dict[str, Any]) -> None:
    model = MODELS[name]()
    data = samples(model, 40)
    sizes = layer_bytes(model, [data])
    largest = max(sizes, key=sizes.__getitem__)
    config = AdaRoundConfig(select_max_mem_layer=True, keep_worse=True, **options)
    tuned, report = quantized(model, config, Reader(data))
    assert [layer.name for layer in report.layers] == [largest]
    assert {layer.node for layer in report.skipped} == sizes.keys() - {largest}
    for layer in report.skipped:
        here, there = sizes[layer.node] / 2**20, sizes[largest] / 2**20
        expected = f"select_max_mem_layer: its data needs {here:.3g} MiB, that of {largest!r} {there:.3g} MiB"
        assert layer.reason == expected
        assert layer.node in report.full(300)
    before, after = (initializers(m) for m in (quantized(model, None, Reader(data))[0], tuned))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(f"{largest}_") for name in changed)


def test_with_parallel_the_layer_is_solved_as_beside_the_others() -> None:
    model = separable_cnn()
    data = samples(model, 40)
    together, _ = quantized(model, AdaRoundConfig(parallel=True), Reader(data))
    both, report = quantized(model, AdaRoundConfig(select_max_mem_layer=True, parallel=True), Reader(data))
    name = f"{report.layers[0].name}_w_quantized"
    np.testing.assert_array_equal(initializers(both)[name], initializers(together)[name])


def test_selective_update_may_discard_the_one_layer() -> None:
    model = separable_cnn()
    data = samples(model, 40)
    config = AdaRoundConfig(select_max_mem_layer=True, selective_update=True, evaluator=lambda _: 0)
    tuned, report = quantized(model, config, Reader(data))
    assert tuned.graph == quantized(model, None, Reader(data))[0].graph
    assert "the whole model did not get better" in report.layers[0].reason


def two_branches() -> onnx.ModelProto:
    """One layer grows with the tokens, the other with the pixels: which one is larger depends on the data."""
    w = Weights(7)
    return build(
        """(float[N,T,4] tokens, float[N,2,H,W] image) => (float[N,T,6] a, float[N,3,H,W] b) {
            [by_token] a = MatMul(tokens, token_w)
            [by_pixel] b = Conv<pads=[1,1,1,1]>(image, pixel_w)
        }""",
        token_w=w.conv(6, 4).T, pixel_w=w.conv(3, 2, 3, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "sides", "largest"),
    [
        ([5] * 12, [3] * 12, "by_token"),
        ([4] * 12, [6] * 12, "by_pixel"),
        ([40] + [1] * 11, [5] * 12, "by_pixel"),  # not as the first sample has it
        ([9] * 12, [3, 4] * 6, "by_token"),
        ([9] * 12, [5, 4] * 6, "by_pixel"),
    ],
)
def test_samples_of_different_shapes(tokens: list[int], sides: list[int], largest: str) -> None:
    model, random = two_branches(), np.random.default_rng(0)
    items = [
        {
            "tokens": random.standard_normal((1, count, 4)).astype(np.float32),
            "image": random.standard_normal((1, 2, side, side)).astype(np.float32),
        }
        for count, side in zip(tokens, sides, strict=True)
    ]
    sizes = layer_bytes(model, items)
    assert max(sizes, key=sizes.__getitem__) == largest
    _, report = quantized(model, ONLY_LARGEST, Items(items))
    assert [layer.name for layer in report.layers] == [largest]
    assert [layer.node for layer in report.skipped] == [name for name in sizes if name != largest]


def test_of_equal_layers_the_first_is_taken() -> None:
    w = Weights(8)
    model = build(
        "(float[N,6] x) => (float[N,6] z) { [one] y = MatMul(x, one_w) [two] z = MatMul(y, two_w) }",
        one_w=w.conv(6, 6), two_w=w.conv(6, 6),
    )  # fmt: skip
    _, report = quantized(model, ONLY_LARGEST, Reader(samples(model, 20)))
    assert [layer.name for layer in report.layers] == ["one"]


def test_layers_that_are_left_out_for_other_reasons_do_not_compete() -> None:
    model = separable_cnn()
    plain, _ = quantized(model, None, Reader(samples(model, 20)))
    config = AdaQuantConfig(select_max_mem_layer=True, target_op_type=["Gemm"])
    _, report = quark.onnx.finetune(model, plain, None, Reader(samples(model, 20)), config)
    assert [layer.name for layer in report.layers] == ["classes"]
    assert report.skipped == ()
