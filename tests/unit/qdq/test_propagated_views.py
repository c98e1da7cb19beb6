"""Q/DQ behind views, which keep onnxruntime's optimiser from pairs of its own that do not load."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import Reader, build, run, samples

from quark.onnx import Int8Spec, ModelQuantizer, QConfig, QLayerConfig, QTensorConfig, UInt8Spec, XInt8Spec

# By operator: the node, and the axes of its output.
VIEWS = {
    "MaxPool": ("MaxPool<kernel_shape=[2,2]>(x)", 4),
    "Reshape": ("Reshape(x, shape)", 4),
    "Slice": ("Slice(x, one, two, one)", 4),
    "Squeeze": ("Squeeze(x, one)", 3),
    "Transpose": ("Transpose<perm=[0,1,3,2]>(x)", 4),
    "Unsqueeze": ("Unsqueeze(x, one)", 5),
}
FORMS = ("t = {} y = Erf(t)", "y = {}", "t = {} u = Identity(t) v = Relu(t) w = Sub(v, u) y = Erf(w)")


def quantized(model: onnx.ModelProto, activation: QTensorConfig) -> onnx.ModelProto:
    config = QConfig(QLayerConfig(activation, weight=Int8Spec()), extra_options={"NumThreads": 1})
    return ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 12)))


def view_model(view: str, form: str, opset: int) -> onnx.ModelProto:
    """A quantized product, a view of it, and what stays in float, if there is anything."""
    node, rank = VIEWS[view]
    channels = 1 if view == "Squeeze" else 2
    dims = ",".join(["N", *(f"d{i}" for i in range(1, rank))])
    return build(
        f"(float[N,{channels},4,4] a) => (float[{dims}] y) {{ x = Mul(a, gain) {form.format(node)} }}",
        opset=opset, gain=0.7, shape=np.array([0, channels, 2, 8]), one=np.array([1]), two=np.array([2]),
    )  # fmt: skip


@pytest.mark.parametrize("opset", [17, 21, 22])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("activation", [Int8Spec(), XInt8Spec(), UInt8Spec()], ids=["int8", "xint8", "uint8"])
def test_models_load_optimised_and_compute_the_same(view: str, opset: int, activation: QTensorConfig) -> None:
    for form in FORMS:
        model = view_model(view, form, opset)
        result = quantized(model, activation)
        onnx.checker.check_model(result, full_check=True)
        data = samples(model, 6, seed=1)
        plain, optimised = run(result, data)[0], run(result, data, optimise=True)[0]
        np.testing.assert_allclose(plain, optimised, atol=0.02 * np.ptp(plain))


@pytest.mark.parametrize(
    "views",
    [
        "x = Mul(a, gain) t = Transpose<perm=[0,1,3,2]>(x)",
        "v = Transpose<perm=[0,1,3,2]>(a) t = MaxPool<kernel_shape=[2,1]>(v) x = Mul(a, gain)",
        "v = Reshape(a, flat) w = Unsqueeze(v, one) t = Squeeze(w, one) x = Mul(a, gain)",
    ],
)
@pytest.mark.parametrize("opset", [17, 21])
def test_a_view_that_a_body_reads(views: str, opset: int) -> None:
    """onnxruntime's optimiser ended the process."""

    def branch(op_type: str) -> onnx.GraphProto:
        value = helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op_type, ["t"], ["o"])], op_type, [], [value])

    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": {opset}]> g (float[N,2,4,4] a) => (float[N,2,d,e] y) '
        "<float gain = {0.7}, float zero = {0}, int64[4] flat = {0,2,2,8}, int64[1] one = {1}>"
        f"{{ {views} s = ReduceSum<keepdims=0>(x) c = Greater(s, zero) }}"
    )
    branches = {"then_branch": branch("Erf"), "else_branch": branch("Sin")}
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], **branches))
    data = samples(model, 12)
    for activation in (UInt8Spec(), Int8Spec()):
        result = quantized(model, activation)
        want, have = run(model, data)[0], run(result, data, optimise=True)[0]
        assert np.abs(want - have).max() < 0.05


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("x = Mul(a, gain) h = Softmax(x) y = Clip(h, low, high)", "the output of Softmax gets the range 0 to 1"),
        (
            "x = Mul(a, gain) h = Relu(x) t = Add(h, h) y = Clip(t, low, zero)",
            "a tensor that is always 0 has the range 0 to 1",
        ),
        ("x = Mul(a, gain) r = Relu(x) h = MaxPool<kernel_shape=[1,1]>(r) y = Clip(h, low, zero)", "the same"),
    ],
)
def test_a_clip_that_no_quantizer_does(nodes: str, why: str) -> None:
    model = build(f"(float[N,2,4,4] a) => (float[N,2,4,4] y) {{ {nodes} }}", gain=0.7, low=-0.5, high=0.1, zero=0.0)
    data = samples(model, 12)
    for activation in (UInt8Spec(), Int8Spec(), XInt8Spec()):
        want, have = run(model, data)[0], run(quantized(model, activation), data)[0]
        assert np.abs(want - have).max() < 0.01, why
