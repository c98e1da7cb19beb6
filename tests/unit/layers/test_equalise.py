"""Cross-layer equalisation: what the model computes stays; ranges meet; every pair is named."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import Arrays, build, initializers, run

from quark.onnx.config.algorithm import CLEConfig
from quark.onnx.layers.equalise import PairReport, equalise
from quark.onnx.preparation.prepare import prepare

ALL = CLEConfig(cle_scale_use_threshold=False)
EYE: Arrays = {name: np.eye(2).reshape(2, 2, 1, 1) for name in ("w", "v")}
CHANNELS = 4


def equalised(model: onnx.ModelProto, config: CLEConfig = ALL) -> tuple[onnx.ModelProto, tuple[PairReport, ...]]:
    result, pairs = equalise(model, {node.name for node in model.graph.node}, config)
    onnx.checker.check_model(result, full_check=True)
    return result, pairs


def uneven(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Weights or biases whose parts along the first two axes have very different sizes."""
    gains = np.exp2(random.uniform(-4, 4, (*shape[:2], *[1] * (len(shape) - 2))))
    return random.standard_normal(shape) * gains


LAYERS = {
    "Conv": ("Conv<pads=[1,1,1,1]>({}, w{i}, b{i})", (CHANNELS, CHANNELS, 3, 3)),
    "grouped": ("Conv<group=2>({}, w{i}, b{i})", (CHANNELS, CHANNELS // 2, 1, 1)),
    "depthwise": ("Conv<group=4, pads=[1,1,1,1]>({}, w{i}, b{i})", (CHANNELS, 1, 3, 3)),
    "without bias": ("Conv({}, w{i})", (CHANNELS, CHANNELS, 1, 1)),
    "ConvTranspose": ("ConvTranspose({}, w{i}, b{i})", (CHANNELS, CHANNELS, 1, 1)),
    "grouped ConvTranspose": ("ConvTranspose<group=2>({}, w{i}, b{i})", (CHANNELS, CHANNELS // 2, 1, 1)),
}
BETWEEN = (
    "Relu({})",
    "LeakyRelu<alpha=0.1>({})",
    "PRelu({}, slope)",
    "Clip({}, zero, six)",
    "Clip({}, minus, six)",
    "Sigmoid({})",
    "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({})",
    "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({})",
    "Pad({}, pads)",
    "Add({}, {})",
    "Add({}, x)",
)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(st.tuples(st.sampled_from(sorted(LAYERS)), st.lists(st.sampled_from(BETWEEN), max_size=2))),
    pooled=st.booleans(),
    steps=st.sampled_from([1, 2, -1]),
    seed=st.integers(0, 1000),
)
def test_the_outputs_stay(layers: list[tuple[str, list[str]]], pooled: bool, steps: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    lines, tensor, constants, size = [], "x", {}, 6

    def write(call: str, i: int = 0) -> None:
        nonlocal tensor
        lines.append(f"t{len(lines)} = {call.format(tensor, tensor, i=i)}")
        tensor = f"t{len(lines) - 1}"

    for i, (layer, between) in enumerate(layers):
        call, shape = LAYERS[layer]
        write(call, i)
        constants |= {f"w{i}": uneven(random, *shape), f"b{i}": uneven(random, CHANNELS)}
        for node in between:
            if node == "Add({}, x)" and size != 6:
                continue
            size += 2 * (node == "Pad({}, pads)")
            write(node)
    if pooled:
        write("GlobalAveragePool({})")
        size = 1
    inputs = CHANNELS * size**2
    write("Flatten({})")
    write("Gemm<transB=1>({}, first, first_b)")
    write("Relu({})")
    write("MatMul({}, second)")
    text = "\n".join(lines).replace(f"{tensor} =", "y =")
    constants = {name: value for name, value in constants.items() if f" {name})" in text or f" {name}," in text}
    constants |= {name: value for name, value in {
        "slope": random.uniform(-1, 1, (CHANNELS, 1, 1)), "zero": 0.0, "minus": -1.0, "six": 6.0,
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }.items() if f" {name})" in text or f" {name}," in text}  # fmt: skip
    model = prepare(
        build(
            f"(float[N,{CHANNELS},6,6] x) => (float[N,3] y) {{ {text} }}",
            first=uneven(random, 5, inputs),
            first_b=uneven(random, 5),
            second=uneven(random, 5, 3),
            **constants,
        )
    )
    result, pairs = equalised(model, CLEConfig(cle_steps=steps))
    x = {"x": random.standard_normal((3, CHANNELS, 6, 6)).astype(np.float32)}
    (want,), (have,) = run(model, x), run(result, x)
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert any(pair.head and not pair.reason for pair in pairs), "the two products at the end are a pair at least"


def ranges(rows: np.ndarray) -> np.ndarray:
    return np.abs(rows).reshape(len(rows), -1).max(axis=1)


def test_ranges_meet_at_their_geometric_mean() -> None:
    random = np.random.default_rng(0)
    head, tail = uneven(random, 6, 3, 3, 3), uneven(random, 4, 3, 1, 1)  # the tail has two groups
    model = build(
        "(float[N,3,5,5] x) => (float[N,4,3,3] y) { t = Conv(x, head, bias) r = Relu(t) y = Conv<group=2>(r, tail) }",
        head=head, tail=tail, bias=np.zeros(6),
    )  # fmt: skip
    found = initializers(equalised(prepare(model))[0])
    before = ranges(head), np.array([np.abs(tail[2 * (c // 3) : 2 * (c // 3) + 2, c % 3]).max() for c in range(6)])
    after = [np.abs(found["tail"][2 * (c // 3) : 2 * (c // 3) + 2, c % 3]).max() for c in range(6)]
    np.testing.assert_allclose(ranges(found["head"]), np.sqrt(before[0] * before[1]), rtol=1e-6)
    np.testing.assert_allclose(after, np.sqrt(before[0] * before[1]), rtol=1e-6)


def gemms(**constants: np.ndarray) -> onnx.ModelProto:
    return prepare(
        build(
            "(float[N,2] x) => (float[N,2] y) { [a] t = Gemm(x, w, b) [r] r = Relu(t) [c] y = MatMul(r, v) }",
            **constants,
        )
    )


def factors_of(model: onnx.ModelProto, config: CLEConfig) -> np.ndarray:
    before, after = (initializers(m) for m in (model, equalised(model, config)[0]))
    found = np.abs(after["v"]).max(axis=1) / np.abs(before["v"]).max(axis=1)
    np.testing.assert_allclose(after["w"] * found, before["w"], rtol=1e-6)
    np.testing.assert_allclose(after["b"] * found, before["b"], rtol=1e-6)
    return found


def test_the_bias_counts_if_it_is_wanted() -> None:
    model = gemms(w=np.eye(2), b=np.array([4.0, 0.5]), v=np.eye(2))
    np.testing.assert_allclose(factors_of(model, CLEConfig()), [2, 1])
    np.testing.assert_allclose(factors_of(model, CLEConfig(cle_scale_append_bias=False)), [1, 1])


def test_faint_channels_stay() -> None:
    model = gemms(w=np.diag([0.4, 0.16]), b=np.zeros(2), v=np.diag([0.1, 0.01]))
    np.testing.assert_allclose(factors_of(model, CLEConfig()), [2, 1])  # 0.5 and 0.17 for the threshold 0.5
    np.testing.assert_allclose(factors_of(model, CLEConfig(cle_weight_threshold=0.6)), [1, 1])
    np.testing.assert_allclose(factors_of(model, CLEConfig(cle_scale_use_threshold=False)), [2, 4])


def test_a_channel_of_zeros_stays() -> None:
    model = gemms(w=np.diag([4.0, 0.0]), b=np.zeros(2), v=np.eye(2))
    np.testing.assert_allclose(factors_of(model, ALL), [2, 1])


@pytest.mark.parametrize("steps", [1, 50, -1])
def test_steps_go_on_until_all_ranges_of_a_chain_meet(steps: int) -> None:
    text = "a = Conv(x, w0) b = Conv<group=4>(a, w1) c = Conv<group=4>(b, w2) y = Conv(c, w3)"
    random = np.random.default_rng(1)
    weights = {f"w{i}": uneven(random, 4, k, 1, 1) for i, k in enumerate((4, 1, 1, 4))}
    model = prepare(build(f"(float[N,4,2,2] x) => (float[N,4,2,2] y) {{ {text} }}", **weights))
    found = initializers(equalised(model, CLEConfig(cle_steps=steps, cle_scale_use_threshold=False))[0])
    middle = np.stack([ranges(found["w0"]), ranges(found["w1"]), ranges(found["w2"])])
    assert np.allclose(middle, middle[0], rtol=1e-3) is (steps != 1)


def test_a_clip_becomes_a_bound_for_each_channel() -> None:
    model = prepare(
        build(
            "(float[N,2,3,3] x) => (float[N,2,3,3] y) { t = Conv(x, w, b) r = Clip(t, low, high) y = Conv(r, v) }",
            w=np.eye(2).reshape(2, 2, 1, 1),
            b=np.array([16.0, 1.0]),
            v=np.eye(2).reshape(2, 2, 1, 1),
            low=0.0,
            high=6.0,
        )
    )
    result, (pair,) = equalised(model)
    assert (pair.scaled, pair.clips) == (1, (model.graph.node[1].name,))
    assert pair.factors == (1, 4)
    assert [node.op_type for node in result.graph.node] == ["Conv", "Relu", "Min", "Conv"]
    bound = next(node.input[1] for node in result.graph.node if node.op_type == "Min")
    np.testing.assert_array_equal(initializers(result)[bound].reshape(-1), [1.5, 6])
    x = {"x": np.random.default_rng(0).uniform(-20, 20, (4, 2, 3, 3)).astype(np.float32)}
    np.testing.assert_array_equal(run(result, x)[0], run(model, x)[0])  # factors are powers of two


def test_clips_are_left_alone_if_that_is_wanted() -> None:
    text = "(float[N,2,3,3] x) => (float[N,2,3,3] y) { t = Conv(x, w) [clip] r = Clip(t, low, high) y = Conv(r, v) }"
    model = prepare(build(text, w=4 * np.eye(2).reshape(2, 2, 1, 1), v=EYE["v"], low=0.0, high=6.0))
    result, (pair,) = equalised(model, CLEConfig(cle_over_clips=False))
    assert pair.reason == "Clip 'clip' in between, and cle_over_clips=False"
    assert [node.op_type for node in result.graph.node] == ["Conv", "Clip", "Conv"]
    assert equalised(model)[1][0].scaled == 2


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ("t = Conv(x, w) s = Sigmoid(t) y = Conv(s, v)", EYE, "Sigmoid .* in between"),
        ("t = Conv(x, w) s = Clip(t, a, b) y = Conv(s, v)", {**EYE, "a": -1.0, "b": 1.0}, "Clip .* in between"),
        ("t = Conv(x, w) s = Relu(t) r = Conv(s, v) y = Add(r, s)", EYE, "has 2 readers"),
        ("t = Conv(x, w) y = Conv(t, w)", {"w": EYE["w"]}, "'w' is read by other nodes"),
        ("t = Conv(x, w, d) y = Conv(t, v)", EYE, "bias .* computed by the model"),
        ("t = Conv(x, w) s = Pad(t, p) y = Conv(s, u)",
         {"w": EYE["w"], "u": np.ones((2, 4, 1, 1)), "p": np.array([0, 1, 0, 0, 0, 1, 0, 0])}, "Pad .* in between"),
        ("t = Conv(x, w) s = Pad(t, p, one) y = Conv(s, v)",
         {**EYE, "one": 1.0, "p": np.array([0, 0, 1, 1, 0, 0, 0, 0])}, "Pad .* in between"),
        ("t = Conv(x, w) s = Transpose<perm=[0,1,3,2]>(t) y = Conv(s, v)", EYE, "Transpose .* in between"),
        ("t = Conv(x, w) y = MatMul(t, m)", {"w": EYE["w"], "m": np.eye(4)}, "channels become 4"),
        ("t = Conv(x, w) y = MatMul(t, m)", {"w": np.ones((4, 2, 1, 1)), "m": np.eye(4)}, "another axis"),
    ],
)  # fmt: skip
def test_pairs_that_are_left_alone_have_a_reason(nodes: str, constants: Arrays, reason: str) -> None:
    dynamic = "float[2] d" if " d)" in nodes else ""
    given = ", ".join(filter(None, ("float[N,2,4,4] x", dynamic)))
    model = prepare(build(f"({given}) => (float[N,A,B,C] y) {{ {nodes} }}", **constants))
    result, pairs = equalised(model)
    assert len(pairs) == 1
    assert re.search(reason, pairs[0].reason), pairs[0].reason
    assert initializers(result).keys() == initializers(model).keys()
    assert all(np.array_equal(a, initializers(model)[name]) for name, a in initializers(result).items())


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("[first] t = MatMul(w, x) y = MatMul(t, v)", "'first' has its weight as the first input"),
        ("t = MatMul(x, w) [last] y = Gemm<transA=1>(t, v)", "'last' transposes its input"),
    ],
)
def test_products_with_channels_on_the_other_axis_are_left_alone(nodes: str, reason: str) -> None:
    model = prepare(build(f"(float[4,4] x) => (float[4,4] y) {{ {nodes} }}", w=4 * np.eye(4), v=np.eye(4)))
    _, (pair,) = equalised(model)
    assert pair.reason == reason


def test_an_output_of_the_model_stays() -> None:
    text = "(float[N,2,4,4] x) => (float[N,2,4,4] t, float[N,2,4,4] y) { t = Conv(x, w) y = Conv(t, v) }"
    _, (pair,) = equalised(prepare(build(text, **EYE)))
    assert pair.reason == "'t' is an output of the model"


def test_layers_that_stay_in_float_are_left_alone() -> None:
    model = gemms(w=np.eye(2), b=np.array([4.0, 0.5]), v=np.eye(2))
    _, (pair,) = equalise(model, {"a"}, ALL)
    assert pair == PairReport(head="a", tail="c", reason="'c' is not quantized")
