"""in_float32(): the same values in float32, the same types outside."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import copy_of, in_floats, with_constant_nodes, with_initializers_as_inputs
from onnx import TensorProto, helper, numpy_helper
from small_models import MODELS, Arrays, samples

from quark.onnx.preparation.float32 import in_float32

DTYPES = {TensorProto.FLOAT16: np.float16, TensorProto.DOUBLE: np.float64}


def outputs(model: onnx.ModelProto, arrays: Arrays) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, arrays)


def rounded(model: onnx.ModelProto, dtype: type) -> onnx.ModelProto:
    """The float32 model with every weight rounded to a type."""
    result = copy_of(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(dtype).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return result


def check(model: onnx.ModelProto) -> onnx.ModelProto:
    before = model.SerializeToString()
    result = in_float32(model)
    assert model.SerializeToString() == before
    onnx.checker.check_model(result, full_check=True)
    assert str(result.graph.output) == str(model.graph.output)
    constants = {tensor.name for tensor in model.graph.initializer}
    given, made = ([v for v in m.graph.input if v.name not in constants] for m in (model, result))
    assert list(map(str, given)) == list(map(str, made))
    return result


@pytest.mark.parametrize("written", [copy_of, with_constant_nodes, with_initializers_as_inputs])
@pytest.mark.parametrize("kind", DTYPES, ids=TensorProto.DataType.Name)
@pytest.mark.parametrize("name", MODELS)
def test_networks(name: str, kind: int, written: object) -> None:
    """What comes out is the float32 network of those weights, with its input and output rounded."""
    model, dtype = MODELS[name](), DTYPES[kind]
    other = in_floats(model, kind)
    result = check(written(other))
    data = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in samples(model, 5).items()}
    real = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in data.items()}
    for want, have in zip(outputs(rounded(model, dtype), real), outputs(result, data), strict=True):
        assert have.dtype == dtype
        tolerance = 2e-3 if kind == TensorProto.FLOAT16 else 1e-6
        np.testing.assert_allclose(have, want.astype(dtype), rtol=tolerance, atol=tolerance * float(abs(want).max()))


@pytest.mark.parametrize("name", MODELS)
def test_a_float32_model_is_given_back(name: str) -> None:
    model = MODELS[name]()
    assert in_float32(model) is model


def test_doubles_that_no_layer_has_for_a_weight_stay() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] y) {
            d = Cast<to=11>(x) e = Exp(d) f = Cast<to=1>(e) y = MatMul(f, w)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.eye(4, dtype="f"), "w"))
    assert in_float32(model) is model


def test_types_that_attributes_name() -> None:
    """Casts and new constants; a branch has some too."""
    yes = onnx.parser.parse_graph("yes () => (float16[N,4] b) { c = Cast<to=10>(t) b = Add(c, half) }")
    no = onnx.parser.parse_graph("no () => (float16[N,4] b) { b = Sub(h, half) }")
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[N,4] x, bool go, int64[N] i) => (float16[N,4] y, int64[N] j) {
            h = Cast<to=10>(x) j = Identity(i)
            s = Shape(x) z = ConstantOfShape<value = float16[1] {2}>(s) h2 = Add(h, z)
            t = Cast<to=1>(h2)
        }"""
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.5], "e"), "half"))
    model.graph.node.append(helper.make_node("If", ["go"], ["k"], then_branch=yes, else_branch=no))
    model.graph.node.append(helper.make_node("Add", ["k", "h2"], ["y"]))
    onnx.checker.check_model(model)
    result = check(model)
    x, i = np.arange(16.0, dtype="f").reshape(4, 4), np.arange(4)
    for go in (np.array(True), np.array(False)):
        arrays = {"x": x, "go": go, "i": i}
        for want, have in zip(outputs(model, arrays), outputs(result, arrays), strict=True):
            assert want.dtype == have.dtype
            np.testing.assert_array_equal(want, have)


def test_bfloat16_inside() -> None:
    """onnxruntime's CPU has hardly an operator for it."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] y) {
            b = Cast<to=16>(x) m = MatMul(b, w) y = Cast<to=1>(m)
        }"""
    )
    weight = np.random.default_rng(0).standard_normal((4, 4)).astype("f")
    short = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    model.graph.initializer.append(numpy_helper.from_array(weight.astype(short), "w"))
    x = np.eye(4, dtype="f")
    np.testing.assert_array_equal(outputs(check(model), {"x": x})[0], weight.astype(short).astype("f"))
