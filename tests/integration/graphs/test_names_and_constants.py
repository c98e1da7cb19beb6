"""However nodes and tensors are named, and wherever constants are kept: the same layers get the same integers."""

from __future__ import annotations

import io
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import (
    copy_of,
    statically_quantized,
    with_constant_nodes,
    with_initializers_as_inputs,
    with_node_names,
)
from rich.console import Console
from small_models import Reader, Weights, build, mean_squared_error, run, samples, separable_cnn

from quark.onnx import (
    AdaRoundConfig,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)
from quark.onnx.system import progress

ODD = ("a b", "a/b\\c", "名前", "x" * 300, 'a:b*?"<>|', "/", "..", "a\nb", " ", "%s{}", "é" * 200, "'", "[red]", "[/x]",
       ":bug:")  # fmt: skip
TARGETS = ("Conv", "Gemm", "MatMul")


def quantized_and_report(
    model: onnx.ModelProto, algorithm: AdaRoundConfig | None = None
) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(
        QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[algorithm or AdaRoundConfig()])
    )
    quantized = quantizer.quantize_model(model, None, Reader(samples(separable_cnn(), 40)))
    return quantized, quantizer.report


def integer_tensors(model: onnx.ModelProto) -> list[bytes]:
    """The weights and biases of the layers in graph order, whatever they are called and wherever they are kept."""
    producer = {name: node for node in model.graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    tensors |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    layers = [node for node in model.graph.node if node.op_type in TARGETS]
    names = [producer[name].input[0] for layer in layers for name in layer.input[1:]]
    return [onnx.numpy_helper.to_array(tensors[name]).tobytes() for name in names]


def oddly_named(model: onnx.ModelProto) -> onnx.ModelProto:
    """All nodes and tensors but the model's inputs and outputs."""
    result, names = copy_of(model), {value.name: value.name for value in (*model.graph.input, *model.graph.output)}

    def odd(name: str) -> str:
        return names.setdefault(name, ODD[len(names) % len(ODD)] + str(len(names)))

    for tensor in result.graph.initializer:
        tensor.name = odd(tensor.name)
    for index, node in enumerate(result.graph.node):
        node.name = ODD[index] if index < len(ODD) else f"{ODD[0]} {index}"
        node.input[:] = map(odd, node.input)
        node.output[:] = map(odd, node.output)
    return result


WAYS = {
    "unnamed": lambda model: with_node_names(model, ""),
    "one name": lambda model: with_node_names(model, "node"),
    "Constant nodes": with_constant_nodes,
    "inputs": with_initializers_as_inputs,
    "odd names": oddly_named,
}

QUANTIZED_WAYS = [name for name in WAYS if name != "one name"]


@pytest.mark.parametrize("written", WAYS.values(), ids=WAYS)
def test_quantize_model(written: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    usual, _ = quantized_and_report(separable_cnn())
    tuned, report = quantized_and_report(written(separable_cnn()))
    assert len(report.layers) == 6
    assert not report.skipped
    assert integer_tensors(tuned) == integer_tensors(usual)


@pytest.mark.parametrize("written", [WAYS[name] for name in QUANTIZED_WAYS], ids=QUANTIZED_WAYS)
@pytest.mark.parametrize("both", [False, True], ids=["quantized model", "both models"])
def test_finetune(written: Callable[[onnx.ModelProto], onnx.ModelProto], both: bool) -> None:
    model = separable_cnn()
    data = samples(model, 40)
    static = statically_quantized(model, data)
    usual, _ = finetune(model, static, None, Reader(data), AdaRoundConfig())
    other = written(static)
    tuned, report = finetune(written(model) if both else model, other, None, Reader(data), AdaRoundConfig())
    assert len(report.layers) == 6
    assert not report.skipped
    assert integer_tensors(tuned) == integer_tensors(usual)
    assert [n.op_type for n in tuned.graph.node] == [n.op_type for n in other.graph.node], "structure stays"
    assert [t.name for t in tuned.graph.initializer] == [t.name for t in other.graph.initializer]


def test_nodes_of_one_name_in_the_quantized_model() -> None:
    """onnxruntime refuses them, whoever runs the model."""
    model = separable_cnn()
    data = samples(model, 40)
    static = with_node_names(statically_quantized(model, data), "node")
    with pytest.raises(ModelError, match=r"the quantized model is invalid: .*two nodes with same node name"):
        finetune(model, static, None, Reader(data), AdaRoundConfig())


def test_numbers_in_constant_nodes() -> None:
    """value_floats are float32: their sum with another float32 is one."""
    model = build(
        """(float[N,8] x) => (float[N,4] y) {
            shift = Constant<value_floats=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]>()
            half = Constant<value_float=0.5>()
            shape = Constant<value_ints=[-1, 8]>()
            s = Add(x, shift) h = Mul(s, half) r = Reshape(h, shape) [layer] y = Gemm(r, w, b)
        }""",
        w=Weights(0).conv(4, 8).T, b=Weights(1).bias(4),
    )  # fmt: skip
    data = samples(model, 60)
    tuned = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
        model, None, Reader(data)
    )
    assert mean_squared_error(model, tuned, data) < 1e-3


def test_scales_in_constant_nodes() -> None:
    model = build("(float[N,8] x) => (float[N,4] y) { [layer] y = Gemm(x, w) }", w=np.eye(8, 4) + 0.3)
    quantized = build(
        """(float[N,8] x) => (float[N,4] y) {
            x_scale = Constant<value_float=0.05>()
            w_scale = Constant<value_float=0.02>()
            x_q = QuantizeLinear(x, x_scale, x_zero)
            x_real = DequantizeLinear(x_q, x_scale, x_zero)
            w_real = DequantizeLinear(w_q, w_scale)
            [layer] y = Gemm(x_real, w_real)
        }""",
        x_zero=np.uint8(128), w_q=(50 * (np.eye(8, 4) + 0.31)).astype(np.int8),
    )  # fmt: skip
    _, report = finetune(model, quantized, None, Reader(samples(model, 60)), AdaRoundConfig())
    assert [layer.name for layer in report.layers] == ["layer"]


def test_a_namesake_of_the_same_shape_is_passed_over() -> None:
    """Nodes numbered in another way: the weight tells which layer is meant."""
    model = separable_cnn()
    data = samples(model, 40)
    static = statically_quantized(model, data)
    usual, _ = finetune(model, static, None, Reader(data), AdaRoundConfig())
    twins = build(
        """(float[N,4] x) => (float[N,4] y) { [a] t = Gemm(x, v) [b] r = Relu(t) [c] y = Gemm(r, w) }""",
        v=Weights(0).conv(4, 4), w=Weights(1).conv(4, 4),
    )  # fmt: skip
    data = samples(twins, 60)
    static = statically_quantized(twins, data)
    usual, _ = finetune(twins, static, None, Reader(data), AdaRoundConfig())
    swapped = {"a": "c", "c": "a"}
    for node in static.graph.node:
        node.name = swapped.get(node.name, node.name)
    tuned, report = finetune(twins, static, None, Reader(data), AdaRoundConfig())
    assert not report.skipped
    assert integer_tensors(tuned) == integer_tensors(usual)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_odd_names_at_each_memory_level(level: int, tmp_path: Path) -> None:
    """Level 2 keeps tensors in files."""
    config = AdaRoundConfig(mem_opt_level=level, cache_dir=str(tmp_path) if level == 2 else None)
    _, report = quantized_and_report(oddly_named(separable_cnn()), config)
    assert len(report.layers) == 6
    assert not list(tmp_path.iterdir())


class Terminal(io.StringIO):
    """A terminal that keeps what it shows."""

    def isatty(self) -> bool:
        return True


def test_odd_names_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in a name is taken for markup of the terminal, neither in the report nor in the bar."""
    drawn = Terminal()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda **_: Console(file=drawn, force_terminal=True, force_jupyter=False, width=100, _environ={}),
    )
    model = separable_cnn()
    layers = [node for node in model.graph.node if node.op_type in TARGETS]
    names = ("[red]", ":bug:", "[bold]a", "[b]", "%s", "[/x]")
    for node, name in zip(layers, names, strict=True):
        node.name = name
    _, report = quantized_and_report(model)
    for name in names:
        assert name in report.full(300)
    assert "[/x]" in drawn.getvalue(), "the last layer is on the bar when it ends"
    assert set(report.full(300)) <= set(string.printable)


def test_a_model_with_all_of_it_computes_the_same() -> None:
    model = oddly_named(with_constant_nodes(separable_cnn()))
    data = samples(separable_cnn(), 8)
    tuned, _ = quantized_and_report(model)
    np.testing.assert_allclose(run(tuned, data)[0], run(separable_cnn(), data)[0], atol=0.5)


@pytest.mark.parametrize(("ir_version", "noted"), [(3, False), (8, True)])
def test_inputs_with_values_of_their_own_are_none_any_more(ir_version: int, noted: bool) -> None:
    """Up to IR version 3 every initializer is an input, which says nothing."""
    text = "(float[N,4] x, float[4] k, float[4,4] w) => (float[N,4] y) { s = Mul(x, k) y = MatMul(s, w) }"
    model = build(text, k=np.arange(1.0, 5.0), w=Weights(0).conv(4, 4))
    model.ir_version = ir_version
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    quantized = quantizer.quantize_model(
        model, None, Reader({"x": np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32)})
    )
    assert [value.name for value in quantized.graph.input] == ["x"]
    assert any("are no inputs any more: 'k', 'w'" in note for note in quantizer.report.notes) == noted
