"""Samples of which nothing reaches a layer, as where nothing is detected: the others choose its scale and tune it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_models import Arrays, Weights, build

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
)

FOUND = 4  # on every sample where something is


class Items:
    def __init__(self, items: list[Arrays]) -> None:
        self._items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


def rows() -> onnx.ModelProto:
    """Found rows of one sample: (1, found, 6)."""
    w = Weights(0)
    return build(
        """(float[1,8,6] x, int64[1] found) => (float[1,8,6] h, float[1,K,5] y) {
            [stage1] h = MatMul(x, w) [select] hits = Slice(h, zero, found, one) [stage2] y = MatMul(hits, v) }""",
        w=w.conv(6, 6), v=w.conv(6, 5), zero=np.array([0]), one=np.array([1]),
    )  # fmt: skip


def crops() -> onnx.ModelProto:
    """Found crops as a batch: (found, 3, 8, 8), and what a classifier makes of them."""
    w = Weights(0)
    return build(
        """(float[8,3,8,8] x, int64[1] found) => (float[8,3,8,8] h, float[K,5] y) {
            [stage1] h = Conv(x, w) [select] hits = Slice(h, zero, found, zero)
            [stage2] c = Conv<pads=[1,1,1,1]>(hits, v, b) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g)
            [stage3] y = Gemm(f, u) }""",
        w=w.conv(3, 3, 1, 1), v=w.conv(4, 3, 3, 3), b=w.bias(4), u=w.conv(4, 5), zero=np.array([0]),
    )  # fmt: skip


MODELS = {rows: ("stage2",), crops: ("stage2", "stage3")}
ALGORITHMS = {
    "least squares": AdaRoundConfig(),
    "adaquant": AdaQuantConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=20),
    "side by side": AdaRoundConfig(parallel=True),
    "in files": AdaRoundConfig(mem_opt_level=2),
    "output_qdq": AdaRoundConfig(output_qdq=True, num_iterations=20),
}


def quantized(
    model: onnx.ModelProto, counts: list[int], *algorithms: object, seed: int = 0
) -> tuple[onnx.ModelProto, Report]:
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(seed).standard_normal((len(counts), *shape)).astype(np.float32)
    items = [{"x": one, "found": np.array([count])} for one, count in zip(x, counts, strict=True)]
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    quantizer = ModelQuantizer(QConfig(layer, algo_config=list(algorithms), extra_options={"NumThreads": 1}))
    return quantizer.quantize_model(model, None, Items(items)), quantizer.report


def initializer(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_layers_are_tuned_on_what_there_is(make: Callable[[], onnx.ModelProto], algorithm: AdaRoundConfig) -> None:
    counts = [FOUND] * 40
    for i in (0, 3, 17, 39):
        counts[i] = 0
    _, report = quantized(make(), counts, algorithm)
    tuned = {layer.name: layer for layer in report.layers}
    for name in MODELS[make]:
        assert not tuned[name].reason or "nothing is better" in tuned[name].reason, tuned[name].reason
        assert sum(tuned[name].rows) > 0
    assert any(tuned[name].accepted for name in MODELS[make])
    assert not any("whole model" in line for line in report.warnings if "nothing" in line)


@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
def test_empty_samples_change_nothing_of_the_scales(
    make: Callable[[], onnx.ModelProto], caplog: pytest.LogCaptureFixture
) -> None:
    """The layer behind keeps its scale where more empty samples join the same others."""
    model, some = make(), [FOUND] * 12
    plain, _ = quantized(model, some)
    more, _ = quantized(model, [*some, 0, 0, 0])
    quantized(model, [0, *some])
    assert initializer(plain, "v_scale") == initializer(more, "v_scale")
    assert not [record for record in caplog.records if "minimum and maximum" in record.message]


@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
def test_turns_to_be_held_out_are_kept(make: Callable[[], onnx.ModelProto]) -> None:
    """Every fifth sample is held out, whether those before it are empty or not."""
    counts = [FOUND if i % 5 == 4 else 0 for i in range(40)]
    _, report = quantized(make(), counts, AdaRoundConfig())
    for layer in report.layers:
        if layer.name in MODELS[make] and make is not crops:  # of crops each is a sample
            assert layer.reason == "least_squares: too little data: no row to fit on or none to hold out"


@pytest.mark.parametrize("make", MODELS, ids=[make.__name__ for make in MODELS])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS.values(), BiasCorrectionConfig()], ids=[*ALGORITHMS, "bias"])
def test_nothing_on_all_samples(make: Callable[[], onnx.ModelProto], algorithm: AdaRoundConfig) -> None:
    _, report = quantized(make(), [0] * 20, algorithm)
    reasons = {layer.name: layer.reason for layer in (*report.layers, *report.corrections)}
    for name in MODELS[make]:
        assert name not in reasons or "too little data" in reasons[name]
