"""Weights that are floats in front of a QuantizeLinear become integers that compute the same, and are finetuned."""

from __future__ import annotations

import numpy as np
import onnx
from foreign import copy_of, statically_quantized
from onnx import helper, numpy_helper
from small_models import Reader, mean_squared_error, run, samples, separable_cnn

from quark.onnx import AdaRoundConfig, analyse, compare_models, finetune
from quark.onnx.qdq.constant_quantizers import with_integer_constants


def with_float_weights(model: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """As other tools export it: every weight is a float initializer, or a Constant, in front of Q and DQ."""
    result = copy_of(quantized)
    graph = result.graph
    floats = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in graph.node:
        integers = next((t for t in graph.initializer if t.name == node.input[0]), None)
        name = node.input[0].removesuffix("_quantized")
        if node.op_type == "DequantizeLinear" and integers is not None and name.endswith("_w"):
            graph.initializer.remove(integers)
            if len(nodes) % 2:
                graph.initializer.append(floats[name])
            else:
                nodes.append(helper.make_node("Constant", [], [name], value=floats[name]))
            nodes.append(helper.make_node("QuantizeLinear", [name, *node.input[1:]], [node.input[0]]))
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result)
    return result


def test_they_compute_the_same_as_integers() -> None:
    model = separable_cnn()
    data = samples(model, 20)
    plain = statically_quantized(model, data)
    given = with_float_weights(model, plain)
    before = given.SerializeToString()
    found = with_integer_constants(given)
    assert given.SerializeToString() == before
    assert sum(node.op_type == "QuantizeLinear" for node in given.graph.node) > sum(
        node.op_type == "QuantizeLinear" for node in found.graph.node
    )
    weights = {t.name: numpy_helper.to_array(t) for t in found.graph.initializer if t.name.endswith("_w_quantized")}
    assert len(weights) == 6
    assert {w.dtype for w in weights.values()} == {np.dtype(np.int8)}
    for a, b in zip(run(given, data), run(found, data), strict=True):
        np.testing.assert_array_equal(a, b)
    assert with_integer_constants(plain) is plain


def test_they_are_finetuned_compared_and_analysed() -> None:
    model = separable_cnn()
    data, unseen = samples(model, 60), samples(model, 64, seed=1)
    given = with_float_weights(model, statically_quantized(model, data))
    tuned, report = finetune(model, given, None, Reader(data), AdaRoundConfig())
    assert len(report.layers) == 6
    assert not report.skipped
    assert mean_squared_error(model, tuned, unseen) < mean_squared_error(model, given, unseen)
    assert len(compare_models(model, given, data, samples=4).layers) == 6
    assert sum(f.kind == "weights" for f in analyse(model, given, data, samples=4, cured=1).findings) == 6
