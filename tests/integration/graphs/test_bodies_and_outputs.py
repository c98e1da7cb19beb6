"""Several inputs, outputs and consumers; layers in the bodies of If, Loop and Scan are left alone, and named."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from foreign import statically_quantized
from onnx import helper, numpy_helper
from small_models import Arrays, Reader, Weights, build, run, samples

from quark.onnx import (
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)


def quantized_and_report(model: onnx.ModelProto, data: Arrays) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()]))
    return quantizer.quantize_model(model, None, Reader(data)), quantizer.report


def error(float_model: onnx.ModelProto, model: onnx.ModelProto, data: Arrays) -> float:
    """Over all outputs."""
    pairs = zip(run(float_model, data), run(model, data), strict=True)
    return float(sum(((a.astype(np.float64) - b) ** 2).sum() for a, b in pairs))


def two_towers() -> onnx.ModelProto:
    """Two inputs, three outputs; two outputs are layer inputs too, one through Add; t feeds a layer and a Relu."""
    w = Weights(0)
    return build(
        """(float[N,3,8,8] a, float[N,3,8,8] b) => (float[N,8,8,8] p, float[N,8,8,8] q, float[N,4] r) {
            [first] p = Conv<pads=[1,1,1,1]>(a, first_w, first_b)
            [second] q = Conv<pads=[1,1,1,1]>(b, second_w, second_b)
            [add] s = Add(p, q)
            [third] t = Conv(q, third_w)
            [relu] u = Relu(t)
            [fourth] v = Conv(t, fourth_w)
            [add2] w = Add(u, v)
            [add3] x = Add(w, s)
            [mean] g = GlobalAveragePool(x)
            [flat] f = Flatten(g)
            [fifth] r = Gemm(f, fifth_w, fifth_b)
        }""",
        first_w=w.conv(8, 3, 3, 3), first_b=w.bias(8), second_w=w.conv(8, 3, 3, 3), second_b=w.bias(8),
        third_w=w.conv(8, 8, 1, 1), fourth_w=w.conv(8, 8, 1, 1), fifth_w=w.conv(8, 4), fifth_b=w.bias(4),
    )  # fmt: skip


def test_several_inputs_outputs_and_consumers() -> None:
    model = two_towers()
    data, unseen = samples(model, 60), samples(model, 40, seed=1)
    names = ["first", "second", "third", "fourth", "fifth"]
    plain = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
        model, None, Reader(data)
    )
    tuned, report = quantized_and_report(model, data)
    assert [layer.name for layer in report.layers] == names
    assert not report.skipped
    assert error(model, tuned, unseen) < error(model, plain, unseen)
    static = statically_quantized(model, data)
    tuned, report = finetune(model, static, None, Reader(data), AdaRoundConfig())
    assert sorted(layer.name for layer in report.layers) == sorted(names)
    assert error(model, tuned, unseen) < error(model, static, unseen)


def body(text: str, **constants: np.ndarray) -> onnx.GraphProto:
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items())
    return graph


def branches() -> onnx.ModelProto:
    """A layer before an If, with layers of all kinds in its branches, and one behind it."""
    w = Weights(0)
    yes = body("yes () => (float[N,8] o) { [outer_weight] o = MatMul(h, outside) }")
    deep = body("deep () => (float[N,8] o) { [deepest] o = Gemm(q, inside) }")
    no = body("no () => (float[N,8] o) { [inner_weight] m = Gemm(h, inside) [products] k = MatMul(m, square) }",
              inside=w.conv(8, 8))  # fmt: skip
    no.node.insert(0, helper.make_node("Constant", [], ["t"], value=numpy_helper.from_array(w.conv(8, 8).astype("f"))))
    no.node.append(helper.make_node("MatMul", ["k", "t"], ["q"], name="constant_node"))
    no.node.append(helper.make_node("If", ["c"], ["o"], name="if again", then_branch=deep, else_branch=deep))
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,8] x, float[8,8] square) => (float[N,8] y) '
        "{ [before] h = Gemm(x, before_w) s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) }"
    )
    constants = {"before_w": w.conv(8, 8), "behind_w": w.conv(8, 8), "outside": w.conv(8, 8), "zero": np.array(0.0)}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items())
    model.graph.node.append(helper.make_node("If", ["c"], ["i"], name="if", then_branch=yes, else_branch=no))
    model.graph.node.append(helper.make_node("Gemm", ["i", "behind_w"], ["y"], name="behind"))
    onnx.checker.check_model(model, full_check=True)
    return model


def branch_data(count: int, seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    return {"x": random.standard_normal((count, 8)).astype("f"), "square": np.zeros((count, 8), "f")}


class SquareReader(Reader):
    """Gives `square` whole with every sample."""

    def get_next(self) -> Arrays | None:
        item = super().get_next()
        return item and {**item, "square": np.eye(8, dtype=np.float32)}


@pytest.mark.parametrize("foreign", [False, True], ids=["quantize_model", "finetune"])
def test_layers_in_branches_are_named(foreign: bool) -> None:
    model, data = branches(), branch_data(60)
    if foreign:
        static = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()))).quantize_model(
            model, None, SquareReader(data)
        )
        _, report = finetune(model, static, None, SquareReader(data), AdaRoundConfig())
    else:
        quantizer = ModelQuantizer(
            QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaRoundConfig()])
        )
        quantizer.quantize_model(model, None, SquareReader(data))
        report = quantizer.report
    assert [layer.name for layer in report.layers] == ["before", "behind"]
    where = "it lies in the body of If {!r}: only layers of the main graph are tuned"
    assert {layer.node: layer.reason for layer in report.skipped} == {
        "outer_weight": where.format("if"),
        "inner_weight": where.format("if"),
        "constant_node": where.format("if"),
        "deepest": where.format("if again"),
    }


def test_a_model_whose_layers_are_all_in_a_loop() -> None:
    step = body(
        "step (int64 i, bool go, float[N,8] s) => (bool more, float[N,8] t) "
        "{ more = Identity(go) [recurrent] t = Gemm(s, recurrent_w) }",
        recurrent_w=Weights(0).conv(8, 8),
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,8] x) => (float[N,8] y) { h = Relu(x) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(3), "three"))
    model.graph.node.append(helper.make_node("Loop", ["three", "", "h"], ["y"], name="loop", body=step))
    onnx.checker.check_model(model, full_check=True)
    data = samples(model, 12)
    result, report = quantized_and_report(model, data)
    assert error(model, result, data) < 1e-9
    where = "recurrent (Gemm): it lies in the body of Loop 'loop': only layers of the main graph are tuned"
    assert f"AdaRoundConfig has no effect: no layer can be finetuned: {where}" in report.warnings


def positive_ones(shape: list[str] | None, *, rank: bool) -> onnx.ModelProto:
    """The positive elements of h: as many as there are, or in one axis of length 1 for each of them."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
        helper.make_node("Greater", ["h", "zero"], ["positive"]),
        helper.make_node("NonZero", ["positive"], ["axes_first"]),
        helper.make_node("Transpose", ["axes_first"], ["places"], perm=[1, 0]),
        helper.make_node("GatherND", ["h", "places"], ["found"]),
    ]
    if rank:
        fill = numpy_helper.from_array(np.array([1]))
        nodes += [
            helper.make_node("Shape", ["found"], ["count"]),
            helper.make_node("ConstantOfShape", ["count"], ["ones"], value=fill),
            helper.make_node("Reshape", ["one", "ones"], ["picked"]),
        ]
    else:
        nodes.append(helper.make_node("Relu", ["found"], ["picked"]))
    weights = {"w": Weights(0).conv(6, 4).T.astype(np.float32), "zero": np.float32(0), "one": np.float32([1])}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4])],
        [
            helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [1, 6]),
            helper.make_tensor_value_info("picked", onnx.TensorProto.FLOAT, shape),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("algorithms", [[], [AdaRoundConfig()]], ids=["plain", "adaround"])
@pytest.mark.parametrize(("shape", "rank"), [(None, False), (["N"], False), (None, True), (["N"], True)], ids=str)
def test_an_output_whose_shape_depends_on_values(
    shape: list[str] | None, rank: bool, algorithms: list[AdaRoundConfig]
) -> None:
    """Where rounding turns a sign, the two models' outputs differ in their shape; the other output is compared."""
    x = np.random.default_rng(0).uniform(-2, 2, (40, 4)).astype(np.float32)
    x[::4] *= 1e-3  # each sign is one of rounding
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms))
    quantizer.quantize_model(positive_ones(shape, rank=rank), None, Reader({"x": x}))
    (note,) = [note for note in quantizer.report.notes if "depends on the data" in note]
    assert note.startswith("the output 'picked' was not compared in ")
    assert "h" in {output.name for output in quantizer.report.end_to_end.after.outputs}
