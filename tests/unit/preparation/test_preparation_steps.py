"""Steps of the preparation that harm a model are left out of it; those that are needed are refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import Reader, build, run, samples

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec, finetune
from quark.onnx.errors import DataError, ModelError
from quark.onnx.inference.sessions import Engine
from quark.onnx.preparation.prepare import Prepared, prepared_on
from quark.onnx.preparation.same_outputs import Reference
from quark.onnx.preparation.steps import Step, after_steps


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


LAYER = "(float[N,3,6,6] x) => (float[A,B,C,D] y) { h = Conv<pads=[1,1,1,1]>(x, w) m = Mul(h, c) y = Relu(m) }"
ITEMS = [{"x": normal(1, 3, 6, 6, seed=seed).astype(np.float32)} for seed in range(3)]


def layer() -> onnx.ModelProto:
    return build(LAYER, w=normal(4, 3, 3, 3), c=normal(4, 1, 1))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def raising(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.graph.node[:]
    raise AttributeError("no values")


def unknown_operator(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node[0].op_type = "Nonsense"
    return model


def unsorted(model: onnx.ModelProto) -> onnx.ModelProto:
    nodes = list(reversed(model.graph.node))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    return model


def one_channel_doubled(model: onnx.ModelProto) -> onnx.ModelProto:
    name = model.graph.node[0].input[1]
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    values = onnx.numpy_helper.to_array(weight).copy()
    values[1] *= 2
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    return model


def another_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.node.append(helper.make_node("GlobalMaxPool", [model.graph.node[-1].output[0]], ["pooled"]))
    model.graph.node[-2].output[0], model.graph.node[-1].input[0] = "inner", "inner"
    model.graph.node[-1].output[0] = "y"
    for dim in model.graph.output[0].type.tensor_type.shape.dim:
        dim.Clear()
    return model


FAULTS = {
    raising: "AttributeError: no values",
    unknown_operator: "the checker would reject the model: No Op registered for Nonsense",
    unsorted: "the checker would reject the model: Nodes in a graph must be topologically sorted",
    one_channel_doubled: "output 'y' would be off by ",
    another_shape: "output 'y' would have the shape (1, 4, 1, 1) instead of (1, 4, 6, 6)",
}
LEFT_OUT = "preparation: the folding of constants into layers was left out: "


def after(fault: Callable, model: onnx.ModelProto, items: list, *, needed: bool = False) -> tuple:
    """The model after a step that does harm, and the notes."""
    return after_steps(model, [Step("a step", fault, needed=needed)], Reference(model, items, Engine(1)))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_does_harm_is_left_out(fault: Callable) -> None:
    model = layer()
    result, (note,) = after(fault, model, ITEMS)
    assert note.startswith(f"preparation: a step was left out: {FAULTS[fault]}")
    assert result == model


def test_a_change_that_only_a_later_item_shows_is_found() -> None:
    def without_relu(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[-1].op_type = "Abs"
        return model

    model = build("(float[N,2] x) => (float[N,2] y) { h = Mul(x, c) y = Relu(h) }", c=np.ones(2) * 3)
    items = [{"x": np.float32([[sign, 2.0]])} for sign in (1.0, -1.0)]
    assert after(without_relu, model, items)[0] == model
    changed, notes = after(without_relu, model, items[:1])
    assert ops(changed) == ["Mul", "Abs"]
    assert notes == ()


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault is not raising])
def test_a_needed_step_that_does_harm_is_an_error(fault: Callable) -> None:
    with pytest.raises(ModelError, match="a step changes what the model computes"):
        after(fault, layer(), ITEMS, needed=True)


def config() -> QConfig:
    return QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])


def test_constants_are_folded_into_a_layer() -> None:
    prepared = prepared_on(layer(), ITEMS, Engine(1))
    assert ops(prepared.model) == ["Conv", "Relu"]
    assert prepared.notes == ()


def test_the_report_says_what_was_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    model = layer()
    data = samples(model, 8)
    plain = ModelQuantizer(config())
    quantized = plain.quantize_model(model, None, Reader(data))
    assert not any(note.startswith(LEFT_OUT) for note in plain.report.notes)
    monkeypatch.setattr("quark.onnx.preparation.prepare.fold_into_layers", one_channel_doubled)
    quantizer = ModelQuantizer(config())
    result = quantizer.quantize_model(model, None, Reader(data, reuse=True))
    assert any(note.startswith(LEFT_OUT) for note in quantizer.report.notes)
    noise = [float(np.mean((run(m, data)[0] - run(model, data)[0]) ** 2)) for m in (quantized, result)]
    assert noise[1] < 10 * noise[0]
    _, report = finetune(model, result, None, Reader(data), AdaRoundConfig())
    assert any(note.startswith(LEFT_OUT) for note in report.notes)
    path = f"{tmp_path}/reference.onnx"
    onnx.save(model, path)
    _, report = finetune(model, result, None, Reader(data), AdaRoundConfig(ref_model_path=path))
    assert any(note.startswith(f"reference model (ref_model_path): {LEFT_OUT}") for note in report.notes)


def test_items_that_the_model_cannot_run_on_are_an_error() -> None:
    model = build("(float[N,A] x, int64[N] i) => (float[N,A] y) { y = Gather(x, i) }")
    with pytest.raises(DataError, match="cannot run on calibration data of shape"):
        prepared_on(model, [{"x": np.ones((1, 2), np.float32), "i": np.array([5])}], Engine(1))


def test_wrong_shapes_of_outputs_do_not_stay() -> None:
    model = build(LAYER, w=normal(4, 3, 3, 3), c=normal(4, 1, 1))
    for index, length in enumerate((1, 5, 6, 12)):
        model.graph.output[0].type.tensor_type.shape.dim[index].dim_value = length
    prepared = prepared_on(model, ITEMS, Engine(1)).model
    onnx.checker.check_model(prepared, full_check=True)
    assert [dim.dim_value for dim in prepared.graph.output[0].type.tensor_type.shape.dim][1:] == [4, 6, 6]


def test_wrong_shapes_that_only_data_shows_do_not_stay() -> None:
    model = build("(float[N,A] x) => (float[N,A] y) { y = Relu(x) }")
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    prepared = prepared_on(model, [{"x": np.ones((2, 3), np.float32)}], Engine(1)).model
    assert prepared.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 0


# ---- what is rounding, and what is not -------------------------------------------------------------


def difference(text: str, other: str, x: np.ndarray, **constants: np.ndarray) -> str:
    first, second = (build(f"(float[N,8] x) => ({body}", **constants) for body in (text, other))
    return Reference(first, [{"x": x}], Engine(1)).difference(second)


ORDERS = ("a = MatMul(x, w) b = Mul(a, c)", "v = Mul(w, c) b = MatMul(x, v)")
CONSTANTS = {"w": normal(8, 8), "c": 1e-3 + np.linspace(0.1, 1, 8)}
X = normal(4, 8).astype(np.float32)


@pytest.mark.parametrize(
    "end",
    [
        "float[N,8] y) { BODY y = Identity(b) }",
        "float[N,8] y) { BODY d = Sub(b, b) y = Exp(d) }",
        "float[N,8] y) { BODY m = ReduceMax<axes=[1]>(b) d = Sub(b, m) y = Exp(d) }",
        "int64[N] y) { BODY y = ArgMax<axis=1, keepdims=0>(b) }",
    ],
)
def test_another_order_of_additions_is_rounding(end: str) -> None:
    texts = [end.replace("BODY", order) for order in ORDERS]
    assert difference(*texts, X, **CONSTANTS) == ""


def test_rounding_is_all_that_is_left() -> None:
    """The outputs would be 0 without rounding, and half of them pass a threshold that nearly all others do not."""
    ends = (
        "float[N,8] y) { BODY p = MatMul(x, u) y = Sub(b, p) }",
        "bool[N,8] y) { BODY p = MatMul(x, u) y = Less(b, p) }",
    )
    for end in ends:
        texts = [end.replace("BODY", order) for order in ORDERS]
        exact = CONSTANTS["w"].astype(np.float32) * CONSTANTS["c"].astype(np.float32)
        assert difference(*texts, X, u=exact, **CONSTANTS) == ""


@pytest.mark.parametrize(
    ("given", "other", "problem"),
    [
        ("float[N,8] y) { y = Relu(x) }", "float[N,8] y) { a = Relu(x) y = Mul(a, t) }", "off by"),
        ("int64[A] y) { y = Shape(x) }", "int64[A] y) { a = Shape(x) y = Add(a, i) }", "differ in 100.0% of"),
        ("float[N,8] y) { y = Log(x) }", "float[N,8] y) { a = Abs(x) y = Log(a) }", "off by"),
        ("seq(float[N,8]) y) { y = SequenceConstruct(x, x) }", "seq(float[N,8]) y) { y = SequenceConstruct(x) }",
         "have 1 elements instead of 2"),
        ("float[N,8] y) { y = Relu(x) }", "double[N,8] y) { a = Relu(x) y = Cast<to=11>(a) }", "be float64"),
    ],
)  # fmt: skip
def test_what_is_no_rounding(given: str, other: str, problem: str) -> None:
    assert problem in difference(given, other, X, t=np.float32(1.01), i=np.int64(1))


def test_sixteen_bit_floats_may_round_more() -> None:
    text = "(float16[N,8] x) => (float16[N,8] y) { a = MatMul(x, w) b = Sigmoid(a) y = MatMul(b, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    weight = normal(8, 8).astype(np.float16)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    prepared = prepared_on(model, [{"x": X.astype(np.float16)}], Engine(1))
    assert isinstance(prepared, Prepared)
    assert prepared.notes == ()
    assert ops(prepared.model) == ["Cast", "MatMul", "Sigmoid", "MatMul", "Cast"]
