"""Nodes that draw random numbers stay as they are: none is folded, merged, or missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from small_models import Reader

from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.graph.editor import all_nodes
from quark.onnx.graph.random_nodes import is_random, with_seeds
from quark.onnx.inference.sessions import Engine
from quark.onnx.preparation.prepare import prepared_on
from quark.onnx.preparation.same_outputs import Reference
from quark.onnx.preparation.steps import Step, after_steps

HEADER = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1, "mine": 1]>'


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


ITEMS = [{"x": normal(4, 6, seed=seed)} for seed in range(2)]
CONSTANTS = {
    "w": normal(6, 6), "p": np.full((4, 6), 0.5, np.float32),
    "zeros": np.zeros((4, 6), np.float32), "ratio": np.float32(0.5), "yes": np.array(True), "three": np.int64(3),
    "shape": np.array([4, 6]),
}  # fmt: skip

# What makes e (4, 6) of x (4, 6) and constants.
DRAWS = {
    "RandomNormal": "e = RandomNormal<shape=[4,6]>()",
    "RandomUniform": "e = RandomUniform<shape=[4,6], low=-1.0>()",
    "a seed": "e = RandomNormal<shape=[4,6], seed=1.0>()",
    "RandomNormalLike of a constant": "e = RandomNormalLike(zeros)",
    "RandomUniformLike of a known shape": "s = Shape(x) z = ConstantOfShape(s) e = RandomUniformLike(z)",
    "two draws, subtracted": "a = RandomNormalLike(x) b = RandomNormalLike(x) e = Sub(a, b)",
    "two uniform draws of a constant": "a = RandomUniformLike(zeros) b = RandomUniformLike(zeros) e = Sub(a, b)",
    "two draws without inputs": "a = RandomNormal<shape=[4,6]>() b = RandomNormal<shape=[4,6]>() e = Sub(a, b)",
    "Bernoulli": "e = Bernoulli(p)",
    "Multinomial": "l = Log(p) m = Multinomial<sample_size=6>(l) e = Cast<to=1>(m)",
    "Dropout in training": "e = Dropout(p, ratio, yes)",
    "Dropout of x in training": "e = Dropout(x, ratio, yes)",
    "a function": "e = mine.noise(x)",
    "branches": """k = Greater(ratio, ratio) e = If(k) <
        then_branch = t () => (float[4,6] te) { te = RandomNormal<shape=[4,6]>() },
        else_branch = f () => (float[4,6] fe) { m = RandomNormalLike(x) n = RandomNormalLike(x) fe = Sub(m, n) }>""",
    "a loop": """q = Loop(three, yes, zeros) <body = l (int64 i, bool c, float[4,6] v) => (bool co, float[4,6] o) {
        co = Identity(c) r = RandomNormal<shape=[4,6]>() o = Add(v, r) }> e = Mul(q, ratio)""",
}  # fmt: skip
NOISE = """<opset_import: ["": 17], domain: "mine">
    noise (a) => (b) { c = RandomNormalLike(a) d = RandomNormalLike(a) b = Sub(c, d) }"""


def model_of(draw: str) -> onnx.ModelProto:
    text = f"{HEADER} g (float[4,6] x) => (float[4,6] y) {{ {draw} h = MatMul(x, w) i = Identity(h) y = Add(i, e) }}"
    model = onnx.parser.parse_model(text + (NOISE if "mine" in draw else ""))
    read = {name for node in all_nodes(model.graph) for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(v, name) for name, v in CONSTANTS.items() if name in read)
    onnx.checker.check_model(model, full_check=True)
    return model


def random_operators(model: onnx.ModelProto) -> Counter[str]:
    functions = (node for function in model.functions for node in function.node)
    return Counter(node.op_type for node in (*all_nodes(model.graph), *functions) if is_random(node))


def spread(model: onnx.ModelProto) -> float:
    """The standard deviation of an output from session to session and run to run."""

    def outputs() -> Iterator[np.ndarray]:
        for _ in range(10):
            session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            yield from (session.run(None, {"x": np.zeros((4, 6), np.float32)})[0] for _ in range(8))

    return float(np.stack(list(outputs())).std(0).mean())


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_stay(draw: str) -> None:
    model = model_of(draw)
    prepared = prepared_on(model, ITEMS, Engine(1))
    assert prepared.notes == ()
    assert random_operators(prepared.model) == random_operators(model)
    assert "Identity" not in [node.op_type for node in prepared.model.graph.node], "it is simplified none the less"
    assert spread(prepared.model) == pytest.approx(spread(model), rel=0.25, abs=1e-6)


@pytest.mark.parametrize("name", ["RandomNormal", "two draws, subtracted", "Bernoulli", "branches", "a function"])
def test_quantized_models_draw_as_well(name: str) -> None:
    model = model_of(DRAWS[name])
    quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec())))
    data = {"x": np.concatenate([item["x"] for item in ITEMS] * 4)}
    quantized = quantizer.quantize_model(model, None, Reader(data, batch=4))
    assert random_operators(quantized) == random_operators(model)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_seeds_make_the_draws_of_all_sessions_the_same(draw: str) -> None:
    model = prepared_on(model_of(draw), ITEMS, Engine(1)).model
    runs = [
        onnxruntime.InferenceSession(with_seeds(model).SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, ITEMS[0]
        )[0]
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*runs)


def test_a_change_of_a_model_that_draws_is_found() -> None:
    def without_a_draw(model: onnx.ModelProto) -> onnx.ModelProto:
        model.graph.node[1].input[0], model.graph.node[1].op_type = "a", "Identity"
        return model

    model = prepared_on(model_of(DRAWS["two draws, subtracted"]), ITEMS, Engine(1)).model
    result, (note,) = after_steps(model, [Step("a step", without_a_draw)], Reference(model, ITEMS, Engine(1)))
    assert note.startswith("preparation: a step was left out: output 'y'")
    assert random_operators(result) == random_operators(model)


def test_what_is_random() -> None:
    def node(op: str, *inputs: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, ["y"])

    for op in ("RandomNormal", "RandomUniformLike", "Bernoulli", "Multinomial", "Sampling", "BiasDropout"):
        assert is_random(node(op, "x")), op
    assert is_random(node("Dropout", "x", "ratio", "training"))
    assert not any(map(is_random, (node("Dropout", "x"), node("Dropout", "x", "ratio"), node("Relu", "x"))))
