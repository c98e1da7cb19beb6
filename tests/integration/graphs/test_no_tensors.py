"""Sequences, maps and optionals among the outputs and inside of a model: it is finetuned as others are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
from foreign import statically_quantized
from onnx import TensorProto, helper, numpy_helper
from small_models import Arrays, Reader, Weights, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    finetune,
)
from quark.onnx.graph.no_tensors import no_tensors

FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, ["rows", "columns"])
SEQUENCE = helper.make_sequence_type_proto(FLOATS)
MAPS = helper.make_sequence_type_proto(
    helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, ()))
)


def model_of(nodes: list[onnx.NodeProto], outputs: dict[str, onnx.TypeProto]) -> onnx.ModelProto:
    """x (N, 4) goes through "first", a MatMul, to h (N, 6), and so on; "second" is one from 6 to 3."""
    weights = Weights(0)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"], "first"), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_value_info(name, kind) for name, kind in outputs.items()],
        [
            numpy_helper.from_array(value, name)
            for name, value in {
                "w": weights.conv(6, 4).T.astype(np.float32),
                "v": weights.conv(3, 6).T.astype(np.float32),
                "one": np.array(1),
            }.items()
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


SECOND = helper.make_node("MatMul", ["h", "v"], ["y"], "second")
SPLIT = helper.make_node("SplitToSequence", ["h"], ["parts"], "split", axis=1)


def zip_map() -> onnx.ModelProto:
    """As scikit-learn's exporter writes classifiers."""
    nodes = [
        SECOND,
        helper.make_node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
        helper.make_node("Softmax", ["y"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    return model_of(nodes, {"label": helper.make_tensor_type_proto(TensorProto.INT64, ["N"]), "scores": MAPS})


def sequence_beside_a_tensor() -> onnx.ModelProto:
    return model_of([SPLIT, SECOND], {"parts": SEQUENCE, "y": FLOATS})


def sequence_past_a_layer() -> onnx.ModelProto:
    """What "second" reads comes out of a sequence, and one of its elements is read behind it."""
    nodes = [
        SPLIT,
        helper.make_node("SequenceInsert", ["parts", "h"], ["more"]),
        helper.make_node("ConcatFromSequence", ["parts"], ["h2"], axis=1),
        helper.make_node("MatMul", ["h2", "v"], ["y"], "second"),
        helper.make_node("SequenceAt", ["more", "one"], ["element"]),
        helper.make_node("Add", ["y", "element"], ["z"]),
    ]
    return model_of(nodes, {"z": FLOATS})


def optional() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Optional", ["h"], ["maybe"]),
        helper.make_node("OptionalGetElement", ["maybe"], ["h2"]),
        helper.make_node("MatMul", ["h2", "v"], ["y"], "second"),
    ]
    return model_of(nodes, {"y": FLOATS, "maybe": helper.make_optional_type_proto(FLOATS)})


def sequence_of_a_body() -> onnx.ModelProto:
    def branch(name: str, op_type: str) -> onnx.GraphProto:
        node = helper.make_node(op_type, ["h"], ["s"])
        return helper.make_graph([node], name, [], [helper.make_value_info("s", SEQUENCE)])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["c"], to=TensorProto.BOOL),
        helper.make_node(
            "If",
            ["c"],
            ["s"],
            then_branch=branch("a", "SequenceConstruct"),
            else_branch=branch("b", "SequenceConstruct"),
        ),
        helper.make_node("Identity", ["s"], ["t"]),
        SECOND,
        helper.make_node("ConcatFromSequence", ["t"], ["h2"], axis=1),
    ]
    return model_of(nodes, {"y": FLOATS, "h2": FLOATS, "t": SEQUENCE})


MODELS = [zip_map, sequence_beside_a_tensor, sequence_past_a_layer, sequence_of_a_body, optional]
KINDS = {
    "adaround": AdaRoundConfig(),
    "adaquant": AdaQuantConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=20),
    "in files": AdaRoundConfig(mem_opt_level=2),
    "float first": AdaRoundConfig(mem_opt_level=0),
    "side by side": AdaRoundConfig(parallel=True),
}


def arrays_of(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """All floats that come out."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # the same on processors without VNNI
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def flat(value: object) -> list[np.ndarray]:
        match value:
            case dict():
                return [np.array(list(value.values()))]
            case list():
                return [array for item in value for array in flat(item)]
        return [np.asarray(value)]

    arrays = [array.ravel() for value in session.run(None, {"x": x}) for array in flat(value)]
    return [array for array in arrays if array.dtype.kind == "f"]


def noise(model: onnx.ModelProto, other: onnx.ModelProto, data: Arrays) -> float:
    (want, have) = (np.concatenate(arrays_of(m, data["x"])) for m in (model, other))
    return float(((want - have) ** 2).mean() / (want**2).mean())


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("algorithm", KINDS.values(), ids=KINDS)
def test_every_way_to_finetune(algorithm: AdaRoundConfig, make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    data = samples(model, 40)
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[algorithm])
    quantizer = ModelQuantizer(config)
    tuned = quantizer.quantize_model(model, None, Reader(data))
    onnx.checker.check_model(tuned, full_check=True)
    assert [layer.name for layer in quantizer.report.layers] == ["first", "second"]
    assert noise(model, tuned, data) < 1e-3
    left_out = [o.name for o in model.graph.output if o.type.WhichOneof("value") != "tensor_type"]
    says = f"outputs that are no tensors are left out of the comparison: {', '.join(map(repr, left_out))}"
    assert (says in quantizer.report.notes) == bool(left_out)
    assert quantizer.report.full(300)


@pytest.mark.parametrize("make", MODELS[1:])
def test_selective_update(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    data = samples(model, 40)
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=[AdaQuantConfig(selective_update=True)])
    quantizer = ModelQuantizer(config)
    assert noise(model, quantizer.quantize_model(model, None, Reader(data)), data) < 1e-3


def test_models_without_an_output_to_compare_are_not_compared() -> None:
    model = zip_map()
    for algorithms in ([AdaRoundConfig()], [BiasCorrectionConfig()], [BiasCorrectionConfig(), AdaRoundConfig()]):
        quantizer = ModelQuantizer(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec()), algo_config=algorithms))
        quantizer.quantize_model(model, None, Reader(samples(model, 40)))
        assert quantizer.report.end_to_end is None
        assert "whole models were not compared: none of the outputs is a tensor of floats" in quantizer.report.warnings


@pytest.mark.parametrize("make", MODELS)
def test_finetune_of_a_foreign_model(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    data = samples(model, 40)
    static = statically_quantized(model, data)
    del static.graph.value_info[:]  # other tools write none
    tuned, report = finetune(model, static, None, Reader(data), AdaRoundConfig())
    assert [layer.name for layer in report.layers] == ["first", "second"]
    assert noise(model, tuned, data) < 1.1 * noise(model, static, data)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (zip_map, {"scores"}),
        (sequence_past_a_layer, {"parts", "more"}),
        (optional, {"maybe"}),
        (sequence_of_a_body, {"s", "t"}),
    ],
)
def test_which_they_are(make: Callable[[], onnx.ModelProto], names: set[str]) -> None:
    assert no_tensors(make()) == names
