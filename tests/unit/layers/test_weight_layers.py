from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from quark.onnx.layers.weight_layers import WeightLayer, weight_layers
from quark.onnx.operators.attributes import (
    ConvAttributes,
    ConvTransposeAttributes,
    GemmAttributes,
    MatMulAttributes,
)


def model(text: str, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g {text}')
    for name, shape in shapes.items():
        parsed.graph.initializer.append(numpy_helper.from_array(np.zeros(shape, np.float32), name))
    return parsed


def test_conv_2d_with_everything_given():
    (layer,) = weight_layers(
        model(
            "(float[N,4,9,9] x) => (float[N,6,A,B] y) { [first] y = Conv<strides=[2,1], pads=[0,1,2,3], "
            "dilations=[1,2], group=2, kernel_shape=[3,2]>(x, w, b) }",
            w=(6, 2, 3, 2),
            b=(6,),
        )
    )
    assert layer == WeightLayer(
        node_name="first",
        op_type="Conv",
        weight="w",
        weight_shape=(6, 2, 3, 2),
        bias="b",
        has_dynamic_bias=False,
        input="x",
        output="y",
        attributes=ConvAttributes(
            kernel_shape=(3, 2),
            strides=(2, 1),
            dilations=(1, 2),
            pads=(0, 1, 2, 3),
            auto_pad="NOTSET",
            group=2,
        ),
    )


def test_conv_1d_defaults_and_auto_pad():
    text = "(float[N,4,9] x) => (float[N,6,9] y) {{ y = Conv{}(x, w) }}"
    for given, auto_pad in (
        ("", "NOTSET"),
        ('<auto_pad="SAME_UPPER">', "SAME_UPPER"),
        ('<auto_pad="VALID">', "VALID"),
    ):
        (layer,) = weight_layers(model(text.format(given), w=(6, 4, 3)))
        assert layer.attributes == ConvAttributes(
            kernel_shape=(3,), strides=(1,), dilations=(1,), pads=(0, 0), auto_pad=auto_pad, group=1
        )
        assert layer.bias is None


def test_conv_transpose_with_everything_given():
    (layer,) = weight_layers(
        model(
            "(float[N,4,9,9] x) => (float[N,6,A,B] y) { [up] y = ConvTranspose<strides=[2,3], pads=[0,1,2,3], "
            "dilations=[1,2], group=2, kernel_shape=[3,2], output_padding=[1,2], output_shape=[17,20]>(x, w, b) }",
            w=(4, 3, 3, 2),
            b=(6,),
        )
    )
    assert layer == WeightLayer(
        node_name="up",
        op_type="ConvTranspose",
        weight="w",
        weight_shape=(4, 3, 3, 2),
        bias="b",
        has_dynamic_bias=False,
        input="x",
        output="y",
        attributes=ConvTransposeAttributes(
            kernel_shape=(3, 2),
            strides=(2, 3),
            dilations=(1, 2),
            pads=(0, 1, 2, 3),
            auto_pad="NOTSET",
            group=2,
            output_padding=(1, 2),
            output_shape=(17, 20),
        ),
    )
    assert layer.layout.outputs == 6


def test_defaults_of_1d_and_3d():
    text = "(float[N,4,9] x, float[N,4,9,9,9] z) => (float[N,6,11] y, float[N,2,8,9,7] t) { %s }"
    transposed, deep = weight_layers(
        model(text % "y = ConvTranspose(x, w) t = Conv(z, v)", w=(4, 6, 3), v=(2, 4, 2, 1, 3))
    )
    assert transposed.attributes == ConvTransposeAttributes(
        kernel_shape=(3,), strides=(1,), dilations=(1,), pads=(0, 0), auto_pad="NOTSET", group=1,
        output_padding=(0,), output_shape=None,
    )  # fmt: skip
    assert (deep.op_type, deep.channel_axis) == ("Conv", 0)
    assert deep.attributes == ConvAttributes(
        kernel_shape=(2, 1, 3), strides=(1,) * 3, dilations=(1,) * 3, pads=(0,) * 6, auto_pad="NOTSET", group=1
    )


def test_gemm_and_matmul():
    gemm, swapped, matmul, batched = weight_layers(
        model(
            "(float[N,4] x) => (float[5,N,6] y) { a = Gemm(x, w) "
            "b = Gemm<alpha=0.5, beta=2.0, transA=1, transB=1>(a, v, c) d = MatMul(b, m) y = MatMul(d, n) }",
            w=(4, 6),
            v=(7, 6),
            c=(7,),
            m=(7, 8),
            n=(5, 8, 6),
        )
    )
    assert (gemm.op_type, gemm.channel_axis, gemm.attributes) == ("Gemm", 1, GemmAttributes())
    assert (swapped.channel_axis, swapped.bias) == (0, "c")
    assert swapped.attributes == GemmAttributes(alpha=0.5, beta=2.0, trans_a=True, trans_b=True)
    assert (matmul.op_type, matmul.channel_axis, matmul.weight_shape) == ("MatMul", 1, (7, 8))
    assert (batched.channel_axis, batched.attributes) == (2, MatMulAttributes())


def test_matmul_with_its_weight_first():
    (layer,) = weight_layers(model("(float[N,4,5] x) => (float[N,6,5] y) { y = MatMul(w, x) }", w=(6, 4)))
    assert (layer.weight, layer.weight_shape, layer.channel_axis, layer.input) == ("w", (6, 4), 0, "x")
    assert layer.attributes == MatMulAttributes(weight_first=True)


def test_what_is_no_weight_layer():
    nodes = (
        "a = MatMul(x, x) b = MatMul(a, a) c = Add(b, w) d = Conv(z, deep) e = Gemm(c, integer) y = MatMul(c, vector)"
    )
    text = f"(float[4,4] x, float[1,1,4,4,4,4] z) => (float[4] y, float d, float e) {{ {nodes} }}"
    parsed = model(text, w=(4, 4), deep=(2, 1, 3, 3, 3, 3), vector=(4,))
    parsed.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.int32), "integer"))
    assert weight_layers(parsed) == ()


def test_a_shared_weight_is_listed_for_each_node_in_graph_order():
    layers = weight_layers(
        model("(float[N,4] x) => (float[N,4] y) { [p] a = Gemm(x, w) [q] y = MatMul(a, w) }", w=(4, 4))
    )
    assert [(layer.node_name, layer.weight) for layer in layers] == [("p", "w"), ("q", "w")]


def test_a_bias_that_is_computed_is_not_the_layers_own():
    (layer,) = weight_layers(model("(float[N,4] x, float[4] c) => (float[N,4] y) { y = Gemm(x, w, c) }", w=(4, 4)))
    assert layer.bias is None
    assert layer.has_dynamic_bias


@pytest.mark.parametrize(
    "attributes",
    [
        "strides=[2147483648]", "dilations=[2147483648]", "pads=[2147483648,0]", "strides=[0]", "strides=[1,1]",
        "pads=[1]", "group=0", "group=4", 'auto_pad="SIDEWAYS"',
    ],
)  # fmt: skip
def test_convolutions_out_of_reach_are_no_layers(attributes: str):
    assert (
        weight_layers(model(f"(float[N,4,9] x) => (float[N,6,9] y) {{ y = Conv<{attributes}>(x, w) }}", w=(6, 4, 3)))
        == ()
    )


def test_a_weight_without_elements_is_no_layer():
    assert weight_layers(model("(float[N,0] x) => (float[N,6] y) { y = MatMul(x, w) }", w=(0, 6))) == ()


def test_no_auto_pad_as_onnxruntime_takes_it():
    text = '(float[N,4,9] x) => (float[N,6,9] y) { y = Conv<auto_pad="", pads=[1,1]>(x, w) }'
    (layer,) = weight_layers(model(text, w=(6, 4, 3)))
    assert layer.attributes.auto_pad == "NOTSET"
