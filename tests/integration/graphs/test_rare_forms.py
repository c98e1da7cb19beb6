"""Models as odd as ONNX allows: each layer is tuned or has a true reason, and the result computes nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import Arrays, Reader, Weights, run

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
from quark.onnx.plan.reasons import Reason

W, SQUARE, B = Weights(0).conv(4, 3).T, Weights(1).conv(4, 4).T, Weights(2).bias(4)  # (inputs, outputs)
KERNEL, SECOND = Weights(3).conv(4, 3, 3, 3), Weights(4).conv(4, 4, 3, 3)
SCALE, VARIANCE = np.linspace(0.5, 1, 4), np.linspace(0.6, 1.2, 4)
COUNT = 60
NOT_QUANTIZED = Reason.WEIGHT_NOT_QUANTIZED.why()
OTHER_OPERATOR = Reason.OTHER_OPERATOR.why()


def model_of(text: str, *, opset: int = 17, ir: int = 8, **constants: np.ndarray | float) -> onnx.ModelProto:
    """Not checked: some of these models are none that the checker takes, and onnxruntime runs them."""
    model = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> g {text}')
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


@dataclass(frozen=True)
class Odd:
    """A model whose input x has the axes `shape` behind that of the samples.

    Attributes:
        layers: those that are tuned, by name.
        skipped: the others, with their reasons.
    """

    model: onnx.ModelProto
    shape: tuple[int, ...]
    layers: tuple[str, ...] = ("a",)
    skipped: dict[str, str] = field(default_factory=dict)


IMAGE, ROW, SQUARE_ROW, ROWS = (3, 8, 8), (3,), (4,), (5, 3)
GEMM = "(float[N,3] x) => (float[N,4] y) { [a] y = Gemm(x, w, b) }"
ODD: dict[str, Callable[[], Odd]] = {}


def odd(make: Callable[[], Odd]) -> Callable[[], Odd]:
    ODD[make.__name__.replace("_", " ")] = make
    return make


def changed(model: onnx.ModelProto, change: Callable[[onnx.GraphProto], object]) -> onnx.ModelProto:
    change(model.graph)
    return model


@odd
def an_inner_tensor_is_an_output() -> Odd:
    text = """(float[N,3,8,8] x) => (float[N,4,6,6] h, float[N,4,6,6] r, float[N,4,4,4] y) {
        [a] h = Conv(x, w, b) r = Relu(h) [c] y = Conv(r, v)
    }"""
    return Odd(model_of(text, w=KERNEL, b=B, v=SECOND), IMAGE, ("a", "c"))


@odd
def an_input_is_an_output() -> Odd:
    text = "(float[N,3,8,8] x) => (float[N,3,8,8] x, float[N,4,6,6] y) { [a] y = Conv(x, w, b) }"
    return Odd(model_of(text, w=KERNEL, b=B), IMAGE)


@odd
def a_weight_and_a_bias_are_outputs() -> Odd:
    text = "(float[N,3] x) => (float[N,4] y, float[3,4] w, float[4] b) { [a] y = Gemm(x, w, b) }"
    return Odd(model_of(text, w=W, b=B), ROW)


@odd
def initializers_are_inputs_as_in_the_oldest_files() -> Odd:
    text = "(float[N,3] x, float[3,4] w, float[4] b) => (float[N,4] y) { [a] y = Gemm(x, w, b) }"
    return Odd(model_of(text, opset=9, ir=3, w=W, b=B), ROW)


def old(opset: int) -> Odd:
    """Clip, Pad, Dropout and BatchNormalization as that opset has them."""
    pad, clip = "Pad(x, pads)", "Clip(h, low, high)"
    constants = {"low": 0.0, "high": 6.0, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    if opset < 11:
        pad, clip, constants = "Pad<pads=[0,0,1,1,0,0,1,1]>(x)", "Clip<min=0.0, max=6.0>(h)", {}
    drop = "Dropout<ratio=0.5>(c)" if opset < 12 else "Dropout(c)"
    text = f"""(float[N,3,8,8] x) => (float[N,4,1,1] y) {{
        p = {pad} [a] h = Conv(p, w, b) c = {clip} d = {drop}
        [bn] n = BatchNormalization(d, s, o, m, v) [g] y = GlobalAveragePool(n)
    }}"""
    constants |= {"w": KERNEL, "b": B, "s": SCALE, "o": B, "m": B, "v": VARIANCE}
    return Odd(model_of(text, opset=opset, **constants), IMAGE, skipped={"bn": NOT_QUANTIZED})


for version in (7, 9, 11, 12, 13):
    ODD[f"opset {version}"] = lambda version=version: old(version)


@odd
def an_onnx_operator_of_the_domain_ai_onnx() -> Odd:
    text = "(float[N,4] x) => (float[N,4] y) { [a] t = Gemm(x, w, b) [c] y = Gemm(t, v, b) }"
    model = model_of(text, w=SQUARE, v=SQUARE, b=B)
    return Odd(changed(model, lambda graph: setattr(graph.node[1], "domain", "ai.onnx")), SQUARE_ROW, ("a", "c"))


def of_onnxruntime(op_type: str, *, imported: bool) -> onnx.ModelProto:
    model = model_of("(float[N,3] x) => (float[N,4] y) { [a] t = Gemm(x, w, b) [c] y = Identity(t) }", w=W, b=B)
    model.graph.node[1].op_type, model.graph.node[1].domain = op_type, "com.microsoft"
    if imported:
        model.opset_import.add(domain="com.microsoft", version=1)
    return model


@odd
def an_operator_of_another_domain() -> Odd:
    return Odd(of_onnxruntime("Gelu", imported=True), ROW)


@odd
def an_operator_of_a_domain_that_is_not_imported() -> Odd:
    return Odd(of_onnxruntime("Gelu", imported=False), ROW)


@odd
def a_layer_of_onnxruntime() -> Odd:
    model = of_onnxruntime("FusedMatMul", imported=True)
    model.graph.node[1].input.append("v")
    model.graph.initializer.append(numpy_helper.from_array(SQUARE.astype(np.float32), "v"))
    return Odd(model, ROW, skipped={"c": OTHER_OPERATOR})


@odd
def a_product_by_einsum() -> Odd:
    text = '(float[N,3] x) => (float[N,4] y) { [a] t = Gemm(x, w) [c] y = Einsum<equation="ij,jk->ik">(t, v) }'
    return Odd(model_of(text, w=W, v=SQUARE), ROW, skipped={"c": OTHER_OPERATOR})


@odd
def a_bias_that_is_named_and_not_there() -> Odd:
    text = "(float[N,3,8,8] x) => (float[N,4,6,6] y) { [a] y = Conv(x, w) }"
    return Odd(changed(model_of(text, w=KERNEL), lambda graph: graph.node[0].input.append("")), IMAGE)


@odd
def outputs_and_inputs_of_a_normalization_that_are_not_there() -> Odd:
    def change(graph: onnx.GraphProto) -> None:
        graph.node[0].input.append("")
        graph.node[0].output.extend(["", ""])

    text = "(float[N,5,3] x) => (float[N,5,4] y) { [n] t = LayerNormalization(x, s) [a] y = MatMul(t, w) }"
    return Odd(changed(model_of(text, w=W, s=SCALE[:3]), change), ROWS, ("n", "a"))


@odd
def an_initializer_that_is_listed_twice() -> Odd:
    return Odd(changed(model_of(GEMM, w=W, b=B), lambda graph: graph.initializer.append(graph.initializer[0])), ROW)


def sparse(*, by_axes: bool) -> Odd:
    dense = np.where(np.arange(12).reshape(3, 4) % 3 == 1, 0, W).astype(np.float32)
    at = np.argwhere(dense) if by_axes else np.flatnonzero(dense)
    values, indices = numpy_helper.from_array(dense[dense != 0], "w"), numpy_helper.from_array(at)
    model = model_of(GEMM, b=B)
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
    return Odd(model, ROW)


ODD["a sparse weight"] = lambda: sparse(by_axes=False)
ODD["a sparse weight by axes"] = lambda: sparse(by_axes=True)


def add(bias: np.ndarray | float, y: str) -> Odd:
    text = f"(float[N,3] x) => (float{y} y) {{ [a] t = MatMul(x, w) [add] y = Add(b, t) }}"
    return Odd(model_of(text, w=W, b=bias), ROW)


ODD["a bias of one row"] = lambda: add(B[None], "[N,4]")
ODD["a bias with more axes than the product"] = lambda: add(B[None, None], "[A,N,4]")
ODD["one number as bias"] = lambda: add(0.3, "[N,4]")


@odd
def one_bias_of_two_products() -> Odd:
    text = """(float[N,3] x) => (float[N,4] y) {
        [a] t = MatMul(x, w) u = Add(t, b) r = Relu(u) [c] s = MatMul(r, v) y = Add(s, b)
    }"""
    return Odd(model_of(text, w=W, b=B, v=SQUARE), ROW, ("a", "c"))


@odd
def a_product_that_is_added_to_itself() -> Odd:
    return Odd(model_of("(float[N,3] x) => (float[N,4] y) { [a] t = MatMul(x, w) y = Add(t, t) }", w=W), ROW)


@odd
def a_product_whose_sum_is_not_all_that_is_read() -> Odd:
    text = "(float[N,3] x) => (float[N,4] y) { [a] t = MatMul(x, w) u = Add(t, b) r = Relu(t) y = Add(u, r) }"
    return Odd(model_of(text, w=W, b=B), ROW)


@odd
def a_computed_bias() -> Odd:
    text = """(float[N,3,8,8] x) => (float[N,4,4,4] y) {
        [c] t = Conv(x, w) m = ReduceMean<axes=[0,2,3], keepdims=0>(t) q = Mul(m, b) [a] y = Conv(t, v, q)
    }"""
    return Odd(model_of(text, w=KERNEL, v=SECOND, b=B), IMAGE, ("c",), {"a": Reason.BIAS_COMPUTED.why()})


@odd
def a_computed_bias_times_0() -> Odd:
    text = "(float[N,3] x) => (float[N,4] y) { m = MatMul(x, v) [a] y = Gemm<beta=0.0>(x, w, m) }"
    return Odd(model_of(text, w=W, v=2 * W), ROW, ("MatMul_0", "a"))


@odd
def two_equal_weights() -> Odd:
    text = "(float[N,4] x) => (float[N,4] y) { [a] t = MatMul(x, w) r = Relu(t) [c] y = MatMul(r, v) }"
    return Odd(model_of(text, w=SQUARE, v=SQUARE), SQUARE_ROW, ("a", "c"))


@odd
def shapes_that_are_not_there() -> Odd:
    def change(graph: onnx.GraphProto) -> None:
        for value in (*graph.input, *graph.output):
            value.type.tensor_type.ClearField("shape")

    return Odd(changed(model_of(GEMM, w=W, b=B), change), ROW)


@odd
def nodes_that_nobody_needs() -> Odd:
    text = "(float[N,3] x) => (float[N,4] y) { [a] y = Gemm(x, w, b) [dead] z = MatMul(x, w) }"
    return Odd(model_of(text, w=W, b=B), ROW)


def tuned(model: onnx.ModelProto | str, data: Arrays) -> tuple[onnx.ModelProto, onnx.ModelProto, Report]:
    """The model with the plain quantization, the tuned one, the report of ModelQuantizer."""
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    plain = ModelQuantizer(QConfig(layer)).quantize_model(model, None, Reader(data))
    quantizer = ModelQuantizer(QConfig(layer, algo_config=[AdaRoundConfig(keep_worse=True)]))
    return plain, quantizer.quantize_model(model, None, Reader(data)), quantizer.report


def distance(model: onnx.ModelProto, other: onnx.ModelProto, data: Arrays) -> float:
    """The largest mean squared error of an output, over its mean square."""
    pairs = list(zip(run(model, data), run(other, data), strict=True))
    assert all(want.shape == have.shape for want, have in pairs)
    return max(float(((have.astype(np.float64) - want) ** 2).mean() / (want**2).mean()) for want, have in pairs)


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_quantized_and_finetuned(make: Callable[[], Odd]) -> None:
    """By ModelQuantizer; then by finetune(), from what ModelQuantizer makes without finetuning: the same."""
    case = make()
    data = {"x": np.random.default_rng(0).standard_normal((COUNT, *case.shape)).astype(np.float32)}
    plain, result, report = tuned(case.model, data)
    again, second = finetune(case.model, plain, None, Reader(data), AdaRoundConfig(keep_worse=True))
    for each, model in ((report, result), (second, again)):
        assert tuple(layer.name for layer in each.layers) == case.layers
        assert {layer.node: layer.reason for layer in each.skipped} == case.skipped
        assert not each.warnings or "did not bring" in each.warnings[0]
        assert distance(case.model, model, data) < 2e-3
    assert [v.name for v in result.graph.input] == ["x"]
    assert [v.name for v in result.graph.output] == [v.name for v in case.model.graph.output]


def test_weights_beside_the_file(tmp_path: Path) -> None:
    """Named by a path, of any characters, the model is the same as one that is given whole."""
    path = tmp_path / "名 前 é" / "a b.onnx"
    path.parent.mkdir()
    model, data = model_of(GEMM, w=W, b=B), {"x": np.random.default_rng(0).standard_normal((COUNT, 3)).astype("f")}
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        path,
        save_as_external_data=True,
        location="w",
        size_threshold=0,
    )
    assert (path.parent / "w").exists()
    whole, beside = tuned(model, data), tuned(path, data)
    assert whole[1].graph.initializer == beside[1].graph.initializer


def test_a_model_that_does_not_say_which_opset_its_operators_have() -> None:
    model = model_of(GEMM, w=W, b=B)
    model.opset_import[0].domain = "com.microsoft"
    with pytest.raises(ModelError, match="does not say which opset"):
        tuned(model, {"x": np.ones((COUNT, 3), np.float32)})
