"""A weight as rows and back, for every kind of layer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from reference.conv_cases import ConvCase, conv_cases, conv_transpose_cases
from reference.conv_rows import conv_of
from small_models import build

from quark.onnx.layers.weight_layers import weight_layers


@settings(max_examples=100, deadline=None)
@given(conv_cases() | conv_transpose_cases() | conv_transpose_cases(depthwise=True))
def test_rows_of_a_convolution_are_its_outputs(case: ConvCase):
    (layer,) = weight_layers(case.model)
    assert conv_of(layer.attributes) == case.conv
    weight = np.arange(case.weight.size).reshape(case.weight.shape)
    rows = layer.layout.rows(weight)
    assert len(rows) == layer.layout.outputs == len(case.bias)
    assert rows.flags.c_contiguous
    np.testing.assert_array_equal(rows, case.conv.weight_rows(weight).reshape(rows.shape))
    np.testing.assert_array_equal(layer.layout.values(rows).reshape(-1), weight.reshape(-1))


@pytest.mark.parametrize(
    ("node", "outputs_first"), [("MatMul", False), ("Gemm", False), ("Gemm<transB=1>", True)], ids=str
)
def test_rows_of_a_matrix_product_are_its_outputs(node: str, outputs_first: bool):
    weight = np.arange(12.0).reshape(3, 4)
    constant = weight.T if outputs_first else weight
    (layer,) = weight_layers(build(f"(float[N,3] x) => (float[N,4] y) {{ y = {node}(x, w) }}", w=constant))
    np.testing.assert_array_equal(layer.layout.rows(constant), weight.T)
    np.testing.assert_array_equal(layer.layout.values(weight.T), constant)
