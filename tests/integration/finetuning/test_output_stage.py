"""The loss looks through the activation behind a layer, and with output_qdq through the quantization of its output.

The models have one layer, so that its error is the difference of what the two models return.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from reference.pattern_cases import CASES, Case
from small_models import Reader, build, by_set, judged

from quark.onnx import AdaQuantConfig, AdaRoundConfig, finetune
from quark.onnx.report.layer_report import LayerReport

SAMPLES, OUTPUTS = 40, 4

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
WRITTEN_OUT = [
    "SiLU",
    "HardSwish of PyTorch, Paddle",
    "HardSigmoid of PyTorch",
    "HardSigmoid of Keras",
    "PRelu of Keras",
    "Gelu of TensorFlow",
    "Gelu by Tanh of BERT",
]
EVERY_LAYER = pytest.mark.parametrize(
    "layer", [GEMM, MATMUL, CONV, TRANSPOSED], ids=["gemm", "matmul", "conv", "transposed"]
)
SAME = "y = Identity(z)"
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

    def errors(self, quantized: onnx.ModelProto, *, channels: int, solver: str = "gradient") -> tuple[float, float]:
        """(fitted, held-out) mean squared differences of the models' outputs, summed over the axis `channels`."""
        return by_set(((run(quantized, self.x) - run(self.float_model, self.x)) ** 2).sum(axis=channels), solver)


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
    for reported, model in ((layer.before, models.quantized), (layer.after, tuned)):
        expected = models.errors(model, channels=channels, solver=config.solver)
        assert reported == pytest.approx(expected, rel=1e-4, nan_ok=True)
    before, after = judged(layer)
    assert after <= before
    power = by_set((run(models.float_model, models.x) ** 2).sum(axis=channels), config.solver)
    assert layer.power == pytest.approx(power, rel=1e-4, nan_ok=True)
    return layer


@EVERY_LAYER
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_error_is_taken_behind_the_activation(layer: str, activation: str) -> None:
    models = pair(layer, f"y = {activation}", f"y = {activation}")
    report = check(
        models,
        AdaRoundConfig(solver="gradient", num_iterations=400, keep_worse=True),
        channels=1 if layer in CONVOLUTIONS else -1,
    )
    assert report.accepted, "400 steps find something better than rounding to nearest 4 bits"


def written_out(case: Case, layer: str, *, x: str = "z", y: str = "y") -> tuple[str, dict[str, Any]]:
    """Nodes and constants of an activation as a graph, with names of their own; a slope for each output."""
    slope = np.linspace(-0.3, 0.6, OUTPUTS).reshape((OUTPUTS, 1, 1) if layer in CONVOLUTIONS else OUTPUTS)
    constants = case.numbers | case.parameters
    if isinstance(case.parameters.get("slope"), np.ndarray):
        constants |= {"slope": slope}
    tensors = {name for node in case.graph().graph.node for name in (*node.input, *node.output)}
    names = {name: f"{name}_k" for name in tensors} | {"x": x, "y": y}
    text = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), case.text)
    return text, {f"{name}_k": np.float32(value) for name, value in constants.items() if name in tensors}


@EVERY_LAYER
@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_an_activation_may_be_a_graph(name: str, layer: str) -> None:
    """In both models, or in one of them."""
    graph, constants = written_out(CASES[name], layer)
    node = "y = " + CASES[name].operator.replace("(x", "(z").replace("slope", "slope_k")
    as_node = [] if name == "SiLU" else [(node, graph, 5), (graph, node, 5)]  # Swish is of opset 24
    for float_end, quantized_end, steps in ((graph, graph, 200), *as_node):
        models = pair(layer, float_end, quantized_end, **constants)
        config = AdaRoundConfig(solver="gradient", num_iterations=steps)
        report = check(models, config, channels=1 if layer in CONVOLUTIONS else -1)
        assert report.accepted or steps < 200, "200 steps find something better than rounding to nearest 4 bits"


@EVERY_LAYER
@pytest.mark.parametrize("name", ["SiLU", "HardSwish of PyTorch, Paddle"])
@pytest.mark.parametrize("kind", [AdaRoundConfig, AdaQuantConfig])
def test_output_qdq_takes_it_behind_the_quantization_of_a_graph(name: str, layer: str, kind: type) -> None:
    graph, constants = written_out(CASES[name], layer)
    inner, _ = written_out(CASES[name], layer, y="a")
    models = pair(layer, graph, f"{inner} {OUTPUT_QDQ.format('a')}", out_zero=np.uint8(20), **constants)
    config = kind(solver="gradient", output_qdq=True, num_iterations=50, learning_rate=0.01)
    check(models, config, channels=1 if layer in CONVOLUTIONS else -1)


@pytest.mark.parametrize("end", ["{} t = Mul(y2, z) y = Sub(y2, t)", "{} y = Add(y2, s_k)"])
def test_a_graph_that_others_look_into_is_none(end: str) -> None:
    """Another reader of the layer's output, or of a tensor between."""
    graph, constants = written_out(CASES["SiLU"], GEMM, y="y2")
    models, plain = pair(GEMM, end.format(graph), end.format(graph), **constants), pair(GEMM, SAME, SAME)
    _, report = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4, nan_ok=True)


def test_a_graph_between_quantized_tensors_is_none() -> None:
    """As onnxruntime quantizes SiLU: what it reads has been rounded."""
    graph, constants = written_out(CASES["SiLU"], GEMM, x="r")
    qdq = OUTPUT_QDQ.format("z").replace("y =", "r =")
    models = pair(GEMM, graph.replace("(r", "(z"), f"{qdq} {graph}", out_zero=np.uint8(128), **constants)
    plain = pair(GEMM, SAME, SAME)
    _, report = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4, nan_ok=True)


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
    assert before_activation.before[0] > 1.2 * models.errors(models.quantized, channels=channels)[0]


def test_an_activation_behind_the_quantization_is_another_node() -> None:
    """z is quantized, then y is computed: the loss with output_qdq ends at the quantization."""
    qdq = OUTPUT_QDQ.format("z").replace("y =", "r =")
    models = pair(GEMM, "y = Relu(z)", f"{qdq} y = Relu(r)", out_zero=np.uint8(128))
    without = pair(GEMM, "y = Identity(z)", OUTPUT_QDQ.format("z"), out_zero=np.uint8(128))
    _, report = models.tuned(AdaRoundConfig(solver="gradient", output_qdq=True, num_iterations=1))
    assert report.before == pytest.approx(without.errors(without.quantized, channels=-1), rel=1e-4, nan_ok=True)


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
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4, nan_ok=True)


def test_an_output_with_another_reader_is_judged_as_it_is() -> None:
    end = "r = Relu(z) y = Add(r, z)"
    models, plain = pair(GEMM, end, end), pair(GEMM, "y = Identity(z)", "y = Identity(z)")
    _, report = models.tuned(AdaRoundConfig(solver="gradient", num_iterations=1))
    assert report.before == pytest.approx(plain.errors(plain.quantized, channels=-1), rel=1e-4, nan_ok=True)


@EVERY_LAYER
@pytest.mark.parametrize("activation", ["Relu(z)", "Sigmoid(z)", "Softmax(z)"])
def test_auto_keeps_the_best_of_both_solvers_behind_the_activation(layer: str, activation: str) -> None:
    models = pair(layer, f"y = {activation}", f"y = {activation}")
    report = check(models, AdaRoundConfig(num_iterations=200), channels=1 if layer in CONVOLUTIONS else -1)
    assert "adaround" in report.candidate
    tuned, _ = models.tuned(AdaRoundConfig(solver="least_squares"))
    alone = models.errors(tuned, channels=1 if layer in CONVOLUTIONS else -1, solver="least_squares")
    # The outputs are float32, and a tenth as large is the error: both round it in about the sixth digit.
    assert report.after[1] <= alone[1] * (1 + 1e-5)


def test_auto_is_least_squares_where_nothing_follows_the_layer() -> None:
    models = pair(GEMM, "y = Identity(z)", "y = Identity(z)")
    auto, by_least_squares = (models.tuned(AdaRoundConfig(solver=s))[0] for s in ("auto", "least_squares"))
    assert auto.graph == by_least_squares.graph
