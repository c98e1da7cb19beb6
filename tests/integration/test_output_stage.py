"""The loss looks through the activation behind a layer, and with output_qdq through the quantization of its output.

The models have one layer, so that its error is the difference of what the two models return.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from small_models import Reader, build

from quark.onnx import AdaQuantConfig, AdaRoundConfig, finetune
from quark.onnx.report.layer_report import LayerReport

SAMPLES, HOLDOUT, OUTPUTS = 40, 5, 4
HELD_OUT = np.arange(SAMPLES) % HOLDOUT == HOLDOUT - 1

GEMM = "z = Gemm(x, w, b)"
MATMUL = "z = MatMul(x, w)"
CONV = "z = Conv<pads=[1, 1, 1, 1]>(x, w, b)"
TRANSPOSED = "z = ConvTranspose<group=2, strides=[2, 1]>(x, w, b)"
CONVOLUTIONS = (CONV, TRANSPOSED)
SHAPES = {GEMM: (24,), MATMUL: (5, 24), CONV: (3, 7, 6), TRANSPOSED: (24, 4, 3)}
WEIGHTS = {GEMM: (24, OUTPUTS), MATMUL: (24, OUTPUTS), CONV: (OUTPUTS, 3, 3, 3), TRANSPOSED: (24, OUTPUTS // 2, 3, 2)}

ACTIVATIONS = [
    "Relu(z)",
    "Clip(z, low, high)",
    "Clip(z, low)",
    "LeakyRelu<alpha = 0.2>(z)",
    "LeakyRelu(z)",
    "PRelu(z, slope)",
    "Sigmoid(z)",
    "Tanh(z)",
    "Gelu(z)",
    'Gelu<approximate = "tanh">(z)',
    "HardSigmoid<alpha = 0.3, beta = 0.4>(z)",
    "HardSwish(z)",
    "Softmax(z)",
]
EVERY_LAYER = pytest.mark.parametrize(
    "layer", [GEMM, MATMUL, CONV, TRANSPOSED], ids=["gemm", "matmul", "conv", "transposed"]
)
OUTPUT_QDQ = "q = QuantizeLinear({}, out_scale, out_zero) y = DequantizeLinear(q, out_scale, out_zero)"


@dataclass(frozen=True)
class Pair:
    """A float model, its quantized model, and data for both."""

    float_model: onnx.ModelProto
    quantized: onnx.ModelProto
    x: np.ndarray

    def tuned(self, config: AdaRoundConfig | AdaQuantConfig) -> tuple[onnx.ModelProto, LayerReport]:
        model, report = finetune(self.float_model, self.quantized, None, Reader({"x": self.x}), config)
        (layer,) = report.layers
        return model, layer

    def errors(self, quantized: onnx.ModelProto, *, channels: int) -> tuple[float, float]:
        """(fitted, held-out) mean squared differences of the models' outputs, summed over the axis `channels`."""
        squares = ((run(quantized, self.x) - run(self.float_model, self.x)) ** 2).sum(axis=channels)
        return squares[~HELD_OUT].mean(), squares[HELD_OUT].mean()


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0].astype(np.float64)


def pair(layer: str, float_end: str, quantized_end: str, *, seed: int = 0, **constants: Any) -> Pair:
    """The texts say what follows the layer's output z; y is the model's output. Weights of 4 bits."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal(WEIGHTS[layer]) / 4
    scale = np.float32(np.abs(weight).max() / 7)
    shape = ",".join(map(str, SHAPES[layer]))
    out = "float[N,A]" if layer == GEMM else "float[N,A,B]" if layer == MATMUL else "float[N,A,B,C]"
    per_channel = (OUTPUTS, 1, 1) if layer in CONVOLUTIONS else (OUTPUTS,)
    constants = {
        "b": rng.standard_normal(OUTPUTS) / 2,
        "low": np.float32(-0.4),
        "high": np.float32(1.9),
        "slope": rng.uniform(-0.5, 0.8, OUTPUTS).reshape(per_channel),
        "out_scale": np.float32(0.02),
        "out_zero": np.uint8(0),
        **constants,
    }

    def model(text: str, **more: Any) -> onnx.ModelProto:
        text = f"(float[N,{shape}] x) => ({out} y) {{ {text} }}"
        used = {name: value for name, value in (constants | more).items() if name in text.replace("(", " ")}
        return build(text, opset=22, **{n: v for n, v in used.items() if f"{n} =" not in text})

    return Pair(
        model(f"[layer] {layer} {float_end}", w=weight),
        model(
            f"w_real = DequantizeLinear(w_q, w_scale) [layer] {layer.replace('w', 'w_real')} {quantized_end}",
            w_q=np.rint(weight / scale).astype(np.int8),
            w_scale=scale,
        ),
        (rng.standard_normal((SAMPLES, *SHAPES[layer])) + 0.7).astype(np.float32),  # a mean, so that errors add up
    )


def check(models: Pair, config: AdaRoundConfig | AdaQuantConfig, *, channels: int) -> LayerReport:
    """The report's errors are those of the models' outputs."""
    tuned, layer = models.tuned(config)
    assert layer.before == pytest.approx(models.errors(models.quantized, channels=channels), rel=1e-4)
    assert layer.after == pytest.approx(models.errors(tuned, channels=channels), rel=1e-4)
    assert layer.after[1] <= layer.before[1]
    power = (run(models.float_model, models.x) ** 2).sum(axis=channels)
    assert layer.power == pytest.approx((power[~HELD_OUT].mean(), power[HELD_OUT].mean()), rel=1e-4)
    return layer


@EVERY_LAYER
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_error_is_taken_behind_the_activation(layer: str, activation: str) -> None:
    models = pair(layer, f"y = {activation}", f"y = {activation}")
    report = check(
        models, AdaRoundConfig(solver="gradient", num_iterations=200), channels=1 if layer in CONVOLUTIONS else -1
    )
    assert report.accepted, "200 steps find something better than rounding to nearest 4 bits"


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_softmax_over_any_axis_but_that_of_the_samples(axis: int) -> None:
    end = f"y = Softmax<axis = {axis}>(z)"
    check(pair(CONV, end, end), AdaRoundConfig(solver="gradient", num_iterations=50), channels=1)


@EVERY_LAYER
@pytest.mark.parametrize("activation", ["Relu(z)", "PRelu(z, slope)", "Tanh(z)", "Softmax(z)"])
@pytest.mark.parametrize("kind", [AdaRoundConfig, AdaQuantConfig])
def test_output_qdq_takes_it_behind_the_quantization(layer: str, activation: str, kind: type) -> None:
    models = pair(layer, f"y = {activation}", f"a = {activation} " + OUTPUT_QDQ.format("a"))
    config = kind(solver="gradient", output_qdq=True, num_iterations=50, learning_rate=0.01)
    check(models, config, channels=1 if layer in CONVOLUTIONS else -1)


@EVERY_LAYER
@pytest.mark.parametrize("activation", ["Relu(z)", "Clip(z, zero, high)"])
def test_an_activation_that_the_quantization_took_over_is_that_of_the_float_tensor(layer: str, activation: str) -> None:
    """As onnxruntime quantizes Relu with uint8: the zero point cuts what lies below."""
    models = pair(layer, f"y = {activation}", OUTPUT_QDQ.format("z"), zero=np.float32(0), high=np.float32(5.1))
    channels = 1 if layer in CONVOLUTIONS else -1
    check(models, AdaRoundConfig(solver="gradient", output_qdq=True, num_iterations=50), channels=channels)
    _, before_activation = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert before_activation.before[1] > 1.2 * models.errors(models.quantized, channels=channels)[1]


def test_an_activation_behind_the_quantization_is_another_node() -> None:
    """z is quantized, then y is computed: the loss with output_qdq ends at the quantization."""
    qdq = OUTPUT_QDQ.format("z").replace("y =", "r =")
    models = pair(GEMM, "y = Relu(z)", f"{qdq} y = Relu(r)", out_zero=np.uint8(128))
    without = pair(GEMM, "y = Identity(z)", OUTPUT_QDQ.format("z"), out_zero=np.uint8(128))
    _, report = models.tuned(AdaRoundConfig(solver="gradient", output_qdq=True, num_iterations=1))
    assert report.before == pytest.approx(without.errors(without.quantized, channels=-1), rel=1e-4)


@pytest.mark.parametrize(
    ("float_end", "quantized_end"),
    [
        ("y = Relu(z)", "y = Identity(z)"),
        ("y = Identity(z)", "y = Relu(z)"),
        ("y = LeakyRelu<alpha = 0.2>(z)", "y = LeakyRelu<alpha = 0.3>(z)"),
        ("y = Sigmoid(z)", "y = Tanh(z)"),
    ],
)
def test_only_an_activation_of_both_graphs_counts(float_end: str, quantized_end: str) -> None:
    models = pair(GEMM, float_end, quantized_end)
    plain = pair(GEMM, "y = Identity(z)", "y = Identity(z)")
    _, report = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4)


def test_an_output_with_another_reader_is_judged_as_it_is() -> None:
    end = "r = Relu(z) y = Add(r, z)"
    models, plain = pair(GEMM, end, end), pair(GEMM, "y = Identity(z)", "y = Identity(z)")
    _, report = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4)


@EVERY_LAYER
@pytest.mark.parametrize("activation", ["Relu(z)", "Sigmoid(z)", "Softmax(z)"])
def test_auto_keeps_the_best_of_both_solvers_behind_the_activation(layer: str, activation: str) -> None:
    models = pair(layer, f"y = {activation}", f"y = {activation}")
    report = check(models, AdaRoundConfig(num_iterations=200), channels=1 if layer in CONVOLUTIONS else -1)
    for solver in ("least_squares", "gradient"):
        tuned, _ = models.tuned(AdaRoundConfig(solver=solver, num_iterations=200, update_bias=True))
        alone = models.errors(tuned, channels=1 if layer in CONVOLUTIONS else -1)
        assert report.after[1] <= alone[1] * (1 + 1e-6)


def test_auto_is_least_squares_where_nothing_follows_the_layer() -> None:
    models = pair(GEMM, "y = Identity(z)", "y = Identity(z)")
    auto, by_least_squares = (models.tuned(AdaRoundConfig(solver=s))[0] for s in ("auto", "least_squares"))
    assert auto == by_least_squares
