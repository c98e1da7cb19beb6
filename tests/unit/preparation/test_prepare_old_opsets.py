"""Models below opset 13 are raised to it and compute what they did, operator by operator."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from quark.onnx import AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.errors import ModelError
from quark.onnx.preparation.prepare import prepare


def uniform(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).random(shape)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


BATCH_NORM = {"g": 1 + uniform(6), "b": uniform(6, seed=1), "m": uniform(6, seed=2), "v": 1 + uniform(6, seed=3)}
DOUBLED = {"scales": np.array([1.0, 1.0, 2.0, 2.0])}
IMAGE = "(float[N,6,8,8] x) => (float[N,C,H,W] y)"


def old_model(opset: int, text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """Its initializers are graph inputs too, as the IR version of its time asked for."""
    domains = f'"": {opset}, "com.microsoft": 1, "ai.onnx.ml": 1'
    model = onnx.parser.parse_model(f"<ir_version: 3, opset_import: [{domains}]> g {text}")
    for name, value in constants.items():
        array = np.asarray(value)
        tensor = numpy_helper.from_array(array.astype("f") if array.dtype.kind == "f" else array, name)
        model.graph.initializer.append(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, array.shape))
    return model


def outputs(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


def first_axis(model: onnx.ModelProto) -> str:
    return str(model.graph.output[0].type.tensor_type.shape.dim[0])


def agree(model: onnx.ModelProto) -> onnx.ModelProto:
    result = prepare(model)
    onnx.checker.check_model(result, full_check=True)
    assert {entry.domain: entry.version for entry in result.opset_import}[""] >= 13
    assert first_axis(result) == first_axis(model)
    shape = [d.dim_value or 2 for d in model.graph.input[0].type.tensor_type.shape.dim]
    for seed in range(3):
        x = normal(*shape, seed=seed).astype("f")
        for want, have in zip(outputs(model, x), outputs(result, x), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(want).max())))
    return result


OLD = {
    "BatchNormalization 7": (7, IMAGE + "{ h = Conv(x, w) y = BatchNormalization<spatial=1>(h, g, b, m, v) }",
                             {"w": uniform(6, 6, 3, 3), **BATCH_NORM}),
    "BatchNormalization 8": (8, IMAGE + "{ h = Relu(x) y = BatchNormalization<epsilon=0.1>(h, g, b, m, v) }",
                             BATCH_NORM),
    "Dropout 7": (7, IMAGE + "{ h, mask = Dropout<ratio=0.5>(x) y = Relu(h) }", {}),
    "Dropout 10": (10, IMAGE + "{ h, mask = Dropout<ratio=0.9>(x) y = Relu(h) }", {}),
    "Clip 7": (7, IMAGE + "{ y = Clip<min=-0.5, max=0.75>(x) }", {}),
    "Clip 7, one bound": (7, IMAGE + "{ y = Clip<max=0.75>(x) }", {}),
    "Upsample 7 nearest": (7, IMAGE + '{ y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,3.0]>(x) }', {}),
    "Upsample 7 linear": (7, IMAGE + '{ y = Upsample<mode="linear", scales=[1.0,1.0,2.0,2.0]>(x) }', {}),
    "Upsample 9 nearest": (9, IMAGE + '{ y = Upsample<mode="nearest">(x, scales) }', DOUBLED),
    "Upsample 9 linear": (9, IMAGE + '{ y = Upsample<mode="linear">(x, scales) }', DOUBLED),
    "Resize 10 linear": (10, IMAGE + '{ y = Resize<mode="linear">(x, scales) }', DOUBLED),
    "Resize 10, smaller": (10, IMAGE + '{ y = Resize<mode="nearest">(x, scales) }',
                           {"scales": np.array([1.0, 1.0, 0.6, 0.6])}),
    "Slice 9": (9, IMAGE + "{ y = Slice<axes=[2,3], starts=[1,0], ends=[-1,5]>(x) }", {}),
    "Pad 9": (9, IMAGE + '{ y = Pad<mode="reflect", pads=[0,0,1,2,0,0,1,0]>(x) }', {}),
    "Pad 7, edges": (7, IMAGE + '{ y = Pad<mode="edge", value=0.0, pads=[0,0,1,2,0,0,1,0]>(x) }', {}),
    "Pad 10, reflected": (10, IMAGE + '{ y = Pad<mode="reflect", value=1.5, pads=[0,0,1,-2,0,0,1,0]>(x) }', {}),
    "Pad 10, a value": (10, IMAGE + '{ y = Pad<mode="constant", value=-1.5, pads=[0,0,1,2,0,0,1,0]>(x) }', {}),
    "Pad 9, before Conv": (9, IMAGE + "{ p = Pad<value=0.0, pads=[0,0,1,1,0,0,1,1]>(x) y = Conv(p, w) }",
                           {"w": uniform(6, 6, 3, 3)}),
    "Hardmax 7": (7, IMAGE + "{ y = Hardmax(x) }", {}),
    "Hardmax 11, axis -2": (11, IMAGE + "{ y = Hardmax<axis=-2>(x) }", {}),
    "BatchNormalization 7, each element": (7, IMAGE + "{ y = BatchNormalization<spatial=0>(x, g, b, m, v) }",
                                           {"g": 1 + uniform(6, 8, 8), "b": uniform(6, 8, 8, seed=1),
                                            "m": uniform(6, 8, 8, seed=2), "v": 1 + uniform(6, 8, 8, seed=3)}),
    "Split 11": (11, IMAGE + "{ i, j = Split<axis=1, split=[2,4]>(x) k, l = Split<axis=1>(j) "
                             "y = Concat<axis=1>(l, i) }", {}),
    "Squeeze 11": (11, """(float[N,6,8,8] x) => (float[N,1,6] y) {
                       p = GlobalMaxPool(x) s = Squeeze<axes=[2,3]>(p) y = Unsqueeze<axes=[1]>(s) }""", {}),
    "Squeeze 11, all axes of 1": (11, """(float[2,6,8,8] x) => (float[2,6] y) {
                                      p = GlobalMaxPool(x) y = Squeeze(p) }""", {}),
    "ReduceSum 11": (11, "(float[N,6,8,8] x) => (float[N,8] y) { y = ReduceSum<axes=[1,3], keepdims=0>(x) }", {}),
    "ReduceMean 7": (7, "(float[N,6,8,8] x) => (float[N,8] y) { y = ReduceMean<axes=[-1,1], keepdims=0>(x) }", {}),
    "Softmax 7": (7, "(float[N,6,8,8] x) => (float[N,6,8,8] y) { y = Softmax(x) }", {}),
    "Softmax 12 of a matrix": (12, "(float[N,6] x) => (float[N,6] y) { y = Softmax(x) }", {}),
    "Softmax 11, axis 2": (11, "(float[N,6,8,8] x) => (float[N,6,8,8] y) { y = Softmax<axis=2>(x) }", {}),
    "Softmax 11, axis 0": (11, "(float[3,6] x) => (float[3,6] y) { y = Softmax<axis=0>(x) }", {}),
    "LogSoftmax 11": (11, "(float[N,6,4] x) => (float[N,6,4] y) { y = LogSoftmax<axis=1>(x) }", {}),
    "Flatten, Gemm 7": (7, "(float[N,6,2,2] x) => (float[N,5] y) { f = Flatten(x) y = Gemm<transB=1>(f, w, b) }",
                        {"w": uniform(5, 24), "b": uniform(5)}),
    "Gemm 9, a bias of one row": (9, "(float[N,6] x) => (float[N,5] y) { y = Gemm(x, w, b) }",
                                  {"w": uniform(6, 5), "b": uniform(1, 5)}),
    "AveragePool 7": (7, IMAGE + "{ y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) }", {}),
    "MaxPool 8": (8, IMAGE + "{ y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) }", {}),
    "PRelu 7": (7, IMAGE + "{ y = PRelu(x, slope) }", {"slope": uniform(6, 1, 1)}),
    "ConvTranspose 8": (8, IMAGE + "{ y = ConvTranspose<strides=[2,2]>(x, w) }", {"w": uniform(6, 4, 2, 2)}),
    "InstanceNormalization 8": (8, IMAGE + "{ y = InstanceNormalization(x, g, b) }",
                                {"g": BATCH_NORM["g"], "b": BATCH_NORM["b"]}),
    "TopK 9": (9, "(float[N,9] x) => (float[N,3] y) { y, i = TopK<k=3>(x) }", {}),
    "TopK 10": (10, "(float[N,9] x) => (float[N,3] y) { y, i = TopK(x, k) }", {"k": np.array([3])}),
    "Shape, Reshape 9": (9, """(float[N,6,4] x) => (float[N,24] y) {
                            s = Shape(x) t = Slice<axes=[0], starts=[0], ends=[1]>(s)
                            u = Concat<axis=0>(t, rest) y = Reshape(x, u) }""", {"rest": np.array([24])}),
    "LSTM 7": (7, "(float[5,N,3] x) => (float[5,1,N,4] y) { y = LSTM<hidden_size=4>(x, w, r) }",
               {"w": uniform(1, 16, 3), "r": uniform(1, 16, 4)}),
    "onnxruntime's own": (9, """(float[N,8] x) => (float[N,8] y) {
                             f = com.microsoft.FusedGemm<activation="Relu">(x, w, b) h = Gemm(f, w, b)
                             i = com.microsoft.BiasGelu(h, b) y = com.microsoft.QuickGelu(i) }""",
                          {"w": uniform(8, 8), "b": uniform(8)}),
    "ai.onnx.ml": (9, """(float[N,8] x) => (float[N,8] y) {
                      s = ai.onnx.ml.Scaler<offset=[0.5], scale=[2.0]>(x) y = MatMul(s, w) }""",
                   {"w": uniform(8, 8)}),
}  # fmt: skip


@pytest.mark.parametrize(("opset", "text", "constants"), OLD.values(), ids=OLD)
def test_raised(opset: int, text: str, constants: dict[str, np.ndarray]) -> None:
    agree(old_model(opset, text, **constants))


def test_nodes_of_other_domains_stay() -> None:
    opset, text, constants = OLD["onnxruntime's own"]
    result = agree(old_model(opset, text, **constants))
    assert [node.op_type for node in result.graph.node] == ["FusedGemm", "Gemm", "BiasGelu", "QuickGelu"]
    types = {value.name: value.type.tensor_type.elem_type for value in result.graph.value_info}
    assert types["f"] == types["i"] == onnx.TensorProto.FLOAT


def test_branches_are_raised_too() -> None:
    yes = onnx.parser.parse_graph("yes () => (float[M,8] o) { o = Clip<min=0.0, max=1.0>(h) }")
    no = onnx.parser.parse_graph(
        """no () => (float[M,8] o) { a = Unsqueeze<axes=[0]>(h) b = Squeeze<axes=[0]>(a) e = Softmax<axis=1>(b)
                                   d = Hardmax(e) o = Pad<mode="edge", value=1.0, pads=[0,0,0,0]>(d) }"""
    )
    model = old_model(
        9,
        "(float[N,8] x) => (float[N,8] y) { h = MatMul(x, w) s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) }",
        w=uniform(8, 8),
        zero=np.array(0.0),
    )
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no))
    agree(model)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_what_a_branch_reads_is_raised(op_type: str) -> None:
    yes, no = (
        onnx.parser.parse_graph(f"{name} () => (float[M,2,8] {name}_o) {{ {name}_o = {body}(p) }}")
        for name, body in (("yes", "Neg"), ("no", "Abs"))
    )
    text = f"""(float[N,2,8] x) => (float[N,2,8] y) {{
        p = {op_type}<axis=1>(x) s = ReduceSum<keepdims=0>(x) c = Greater(s, zero)
    }}"""
    model = old_model(12, text, zero=np.array(0.0))
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=yes, else_branch=no))
    agree(model)


# ---- where the preparation went wrong ------------------------------------------------------------


class Items:
    """A reader over these items."""

    def __init__(self, *items: dict[str, np.ndarray]) -> None:
        self._items = iter(items)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


@pytest.mark.parametrize("tuned", [False, True])
def test_a_model_that_would_compute_something_else_is_refused(tuned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As onnx's version converter alone would make of a linear Upsample."""
    text = """(float[N,3,8,8] x) => (float[N,6,16,16] y) {
        h = Conv<pads=[1,1,1,1]>(x, w) y = Upsample<mode="linear">(h, scales)
    }"""
    model = old_model(9, text, w=normal(6, 3, 3, 3), **DOUBLED)
    x = normal(10, 3, 8, 8).astype("f")
    algorithms = [AdaRoundConfig()] if tuned else []
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms))

    def reader() -> Items:
        return Items(*({"x": item[None]} for item in x))

    quantizer.quantize_model(model, None, reader())
    assert not [note for note in quantizer.report.notes if "preparation" in note]
    monkeypatch.setattr("quark.onnx.graph.opset.keep_old_resize", lambda _: None)
    with pytest.raises(ModelError, match=r"opset 13.* changes what the model computes: output 'y' would be off by"):
        quantizer.quantize_model(model, None, reader())
