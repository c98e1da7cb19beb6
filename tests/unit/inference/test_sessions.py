"""When items may be joined into one batch."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import MODELS, Arrays, build, samples

from quark.onnx.inference.sessions import READY, BatchMerging, Engine, batch_is_free, in_order, session

ONE = np.float32([[1, -2, 3]])
TWO = np.float32([[4, 5, -6], [7, 8, 9]])


def is_exact(model: onnx.ModelProto, a: Arrays, b: Arrays) -> bool:
    return BatchMerging(model, Engine(1)).is_exact(a, b)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_treat_samples_apart(name: str):
    model = MODELS[name]()
    data = samples(model, 5)
    a, b = ({key: x[part] for key, x in data.items()} for part in (slice(2), slice(2, 5)))
    assert is_exact(model, a, b)


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,3] x) => (float[N,3] y) { y = Softmax<axis=0>(x) }",
        "(float[N,3] x) => (float[N,3] y) { m = ReduceMean<axes=[0]>(x) y = Sub(x, m) }",
        "(float[N,3] x) => (float[N,3] y) { m = ReduceMax(x) t = Mul(x, tiny) y = Mul(t, m) }",
        "(float[N,3] x) => (int64[N] y) { m = Softmax<axis=0>(x) y = ArgMax<axis=1, keepdims=0>(m) }",
    ],
    ids=["softmax", "mean", "tiny outputs", "labels"],
)
def test_models_that_mix_samples(text: str):
    assert not is_exact(build(text, **({"tiny": 1e-9} if "tiny" in text else {})), {"x": ONE}, {"x": TWO})


@pytest.mark.parametrize(
    "text",
    [
        "(float[1,3] x) => (float[1,3] y) { y = Relu(x) }",
        "(float[N,3] x, float[3] z) => (float[N,3] y) { y = Add(x, z) }",
        "(float[N,3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }",
    ],
    ids=["fixed batch", "an input without batch", "a scalar output"],
)
def test_models_whose_batch_is_not_free(text: str):
    model = build(text)
    assert not batch_is_free(model)
    inputs = {"x": ONE, "z": ONE[0]} if "z" in text else {"x": ONE}
    assert not is_exact(model, inputs, inputs)


def test_a_model_that_cannot_run_on_both():
    folding = build("(float[N,3] x) => (float[M,3] y) { y = Reshape(x, shape) }", shape=np.array([1, 3]))
    assert not is_exact(folding, {"x": ONE}, {"x": ONE})  # runs on each, not on both joined
    assert not is_exact(folding, {"x": TWO}, {"x": ONE})  # not even on each


def test_defaults_of_inputs_are_no_inputs():
    model = build("(float[N,3] x) => (float[N,3] y) { y = Mul(x, w) }", w=np.ones(3))
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    assert is_exact(model, {"x": ONE}, {"x": TWO})


def test_the_first_two_items_decide_for_all():
    merging = BatchMerging(build("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }"), Engine(1))
    assert merging.is_exact({"x": ONE}, {"x": TWO})
    assert merging.is_exact({"x": ONE}, {"no such input": TWO})  # is not run


def test_the_model_stays():
    model = MODELS["mlp"]()
    before = model.SerializeToString()
    data = samples(model, 2)
    is_exact(model, data, data)
    assert model.SerializeToString() == before


def test_unless_asked_to_fuse_a_session_keeps_the_models_own_rounding():
    """Q/DQ around a Relu: optimised away or not, the definition decides."""
    model = build(
        """(float[N] x) => (float[N] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Relu(d)
        }""",
        s=0.5,
        z=np.int8(0),
    )
    (y,) = session(model, Engine(1)).run(None, {"x": np.float32([0.3, -3, 100])})
    np.testing.assert_array_equal(y, [0.5, 0, 63.5])


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_results_come_in_the_order_of_the_items(threads: int, count: int):
    def slow_first(i: int) -> int:
        time.sleep(0.002 * (count - i))
        return i * i

    assert list(in_order(slow_first, range(count), threads=threads)) == [i * i for i in range(count)]


@pytest.mark.parametrize("threads", [1, 3])
def test_only_a_little_is_computed_ahead(threads: int):
    taken = []

    def items() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    results = in_order(lambda i: i, items(), threads=threads)
    for wanted in range(10):
        assert next(results) == wanted
        assert len(taken) <= wanted + 1 + threads + READY
    results.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_reaches_the_caller_in_its_turn(threads: int):
    results = in_order(lambda i: 1 // (2 - i), range(5), threads=threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize(("megabytes", "ahead"), [(1, 3 + READY), (40, 3)])
def test_fewer_large_results_wait(megabytes: int, ahead: int):
    taken = []

    def items() -> Iterator[int]:
        for i in range(40):
            taken.append(i)
            yield i

    empty = np.broadcast_to(np.uint8(0), megabytes << 20)  # which takes no memory
    results = in_order(lambda _: {"of a layer": [empty]}, items(), threads=3)
    for wanted in range(1, 11):
        next(results)
        assert len(taken) <= wanted + ahead
    results.close()


def test_runs_with_large_tensors_share_the_processors_otherwise():
    engine = Engine(8)
    at_once, each = engine.shared_out(32)
    assert (at_once, each.threads) == (8, 1)
    at_once, each = engine.shared_out(32, 24 << 20)
    assert (at_once, each.threads) == (4, 2)
    at_once, each = engine.shared_out(32, 1 << 30)
    assert (at_once, each.threads) == (1, 8)


@pytest.mark.parametrize("element", [TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.INT4])
@pytest.mark.parametrize("optimise", [False, True])
def test_large_tensors_of_any_type(element: int, optimise: bool):
    """They are put aside where a session takes them as arrays."""
    values = np.arange(-4, 4, dtype=np.float32).repeat(1 << 18)
    weight = onnx.helper.make_tensor("w", element, values.shape, values)
    model = build("(float[N] x) => (float[N] y) { f = Cast<to=1>(w) s = ReduceSum(f) y = Add(x, s) }", opset=21, w=0.0)
    model.ir_version = 10
    model.graph.initializer[0].CopyFrom(weight)
    (y,) = session(model, Engine(1), optimise=optimise).run(None, {"x": np.float32([1, 2])})
    np.testing.assert_array_equal(y, np.float32([1, 2]) + values.sum())
