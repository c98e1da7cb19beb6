"""Models with activations and normalizations as graphs: quantized, tuned, compared with the graphs as they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported_models import bert_block, efficientnet_block, mobilenet_v3_block
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from reference.pattern_cases import CASES
from small_models import Reader, initializers, mean_squared_error, samples

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
    finetune,
)
from quark.onnx.patterns.pattern_table import PATTERNS
from quark.onnx.qdq.qdq_options import DEFAULT_OP_TYPES
from quark.onnx.report.report import Report

DOCS = Path(__file__).parents[3] / "docs"
MODELS = {"efficientnet": efficientnet_block, "mobilenet_v3": mobilenet_v3_block, "bert": bert_block}
EVERY_MODEL = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
CONFIGS = {
    "least squares": AdaRoundConfig(),
    "least squares, free": AdaQuantConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=200, update_bias=True),
}
EVERY_CONFIG = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def quantize(
    model: onnx.ModelProto, config: AdaRoundConfig | AdaQuantConfig | None = None, **extra: Any
) -> tuple[onnx.ModelProto, Report]:
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    quantizer = ModelQuantizer(QConfig(layer, algo_config=[config] if config else None, extra_options=extra))
    quantized = quantizer.quantize_model(model, None, Reader(samples(model, 120)))
    return quantized, quantizer.report


class _OnnxruntimeReader(Reader, CalibrationDataReader):
    pass


def quantize_by_onnxruntime(
    model: onnx.ModelProto, path: Path, op_types: Sequence[str] = DEFAULT_OP_TYPES, **extra: Any
) -> onnx.ModelProto:
    """The graph as it stands, with the same types, operators and samples."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # it moves the weights of what it gets to a file
    quantize_static(
        copy, path, _OnnxruntimeReader(samples(model, 120)), quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, op_types_to_quantize=list(op_types),
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False, **extra},
    )  # fmt: skip
    return onnx.load(path)


# ---- made by ModelQuantizer -----------------------------------------------------------------------


@EVERY_CONFIG
@EVERY_MODEL
def test_finetuning_brings_it_closer_to_the_float_model(
    make: Callable[[], onnx.ModelProto], config: AdaRoundConfig | AdaQuantConfig
) -> None:
    model = make()
    plain, _ = quantize(model)
    tuned, report = quantize(model, config)
    assert {layer.reason for layer in report.skipped} <= {"its weight is computed by the model, not constant"}
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.9 * mean_squared_error(model, plain, unseen)


def test_a_transformer_loses_less_than_its_graph_would(tmp_path: Path) -> None:
    for seed in range(3):
        model = bert_block(seed=seed)
        unseen, as_it_stands = samples(model, 64, seed=1), quantize_by_onnxruntime(model, tmp_path / "graph.onnx")
        fused, _ = quantize(model)
        assert mean_squared_error(model, fused, unseen) < 0.9 * mean_squared_error(model, as_it_stands, unseen)


def test_layer_normalizations_are_tuned() -> None:
    model = bert_block()
    plain, _ = quantize(model)
    config = AdaRoundConfig(target_op_type=["LayerNormalization"])
    tuned, report = quantize(model, config)
    assert [layer.name for layer in report.layers] == ["n1_end", "n2_end", "n3_end"]
    accepted = [layer for layer in report.layers if layer.accepted]
    assert accepted
    assert all(layer.after[1] < layer.before[1] for layer in accepted)
    before, after = initializers(plain), initializers(tuned)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert changed <= {f"norm{i}_{part}_quantized" for i in (1, 2, 3) for part in "wb"}


@pytest.mark.parametrize(
    ("make", "op_type", "count"),
    [
        (bert_block, "LayerNormalization", 3),
        (bert_block, "Gelu", 1),
        (mobilenet_v3_block, "HardSwish", 4),
        (mobilenet_v3_block, "HardSigmoid", 1),
    ],
)
def test_an_operator_stands_between_quantized_tensors(
    make: Callable[[], onnx.ModelProto], op_type: str, count: int
) -> None:
    quantized, _ = quantize(make())
    producer = {name: node.op_type for node in quantized.graph.node for name in node.output}
    nodes = [node for node in quantized.graph.node if node.op_type == op_type]
    assert len(nodes) == count
    for node in nodes:
        assert {producer[name] for name in node.input} == {"DequantizeLinear"}
        readers = [reader.op_type for reader in quantized.graph.node if node.output[0] in reader.input]
        assert readers == ["QuantizeLinear"]


def test_an_excluded_operator_has_the_name_of_its_last_node() -> None:
    layer = QLayerConfig(UInt8Spec(), weight=Int8Spec())
    model = bert_block()
    config = QConfig(layer, exclude=["n2_end", "g_end"])
    quantized = ModelQuantizer(config).quantize_model(model, None, Reader(samples(model, 20)))
    floats = {tensor.name for tensor in quantized.graph.initializer}
    assert {"norm2_w", "norm2_b"} <= floats
    assert not {"norm1_w", "norm3_w"} & floats


@pytest.mark.parametrize(
    ("options", "opset", "fused"),
    [
        ({}, 20, {"Gelu": 1, "LayerNormalization": 3}),
        ({"FuseGelu": False}, 17, {"LayerNormalization": 3}),
        ({"FuseLayerNorm": False}, 20, {"Gelu": 1}),
        ({"FuseGelu": False, "FuseLayerNorm": False}, 13, {}),
    ],
)
def test_graphs_stay_if_so_asked(options: dict[str, bool], opset: int, fused: dict[str, int]) -> None:
    """Nothing is raised for them then."""
    quantized, report = quantize(bert_block(), **options)
    kinds = Counter(node.op_type for node in quantized.graph.node if node.op_type in ("Gelu", "LayerNormalization"))
    assert (quantized.opset_import[0].version, kinds) == (opset, fused)
    assert report.ignored == ()


# ---- made by another tool -------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["gradient", "auto"])
@pytest.mark.parametrize("make", [efficientnet_block, mobilenet_v3_block], ids=["efficientnet", "mobilenet_v3"])
def test_the_loss_looks_through_graphs_that_another_tool_left_in_float(
    make: Callable[[], onnx.ModelProto], solver: str, tmp_path: Path
) -> None:
    """Convolutions whose output is not quantized: the float activation reads it."""
    model = make()
    plain = quantize_by_onnxruntime(
        model, tmp_path / "plain.onnx", ["Conv", "Gemm"], OpTypesToExcludeOutputQuantization=["Conv"]
    )
    outputs = {node.output[0] for node in plain.graph.node if node.op_type == "Conv"}
    assert not [node for node in plain.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in outputs]
    config = AdaRoundConfig(solver=solver, num_iterations=200)
    tuned, report = finetune(model, plain, None, Reader(samples(model, 240)), config)
    assert any(layer.accepted for layer in report.layers)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.9 * mean_squared_error(model, plain, unseen)


@EVERY_MODEL
def test_quantized_graphs_of_another_tool_are_tuned(make: Callable[[], onnx.ModelProto], tmp_path: Path) -> None:
    """The float model's patterns become operators, the quantized model's stay."""
    model = make()
    plain = quantize_by_onnxruntime(model, tmp_path / "plain.onnx")
    tuned, _ = finetune(model, plain, None, Reader(samples(model, 120)), AdaRoundConfig())
    assert list(tuned.graph.node) == list(plain.graph.node)
    unseen = samples(model, 64, seed=1)
    assert mean_squared_error(model, tuned, unseen) < 0.9 * mean_squared_error(model, plain, unseen)


# ---- the table ------------------------------------------------------------------------------------


def test_the_documentation_lists_every_pattern() -> None:
    """Each formula, line by line, below the operator that it stands for."""
    sections = (DOCS / "patterns.md").read_text().split("\n## ")
    for pattern in PATTERNS:
        (section,) = (text for text in sections if text.splitlines()[0] == pattern.stands_for)
        for line in pattern.formula.strip().splitlines():
            assert line.strip() in section, f"docs/patterns.md lacks a line of {pattern.stands_for}: {line.strip()}"


def test_every_pattern_that_is_documented_is_there() -> None:
    headings = [line[3:] for line in (DOCS / "patterns.md").read_text().splitlines() if line.startswith("## ")]
    known = {pattern.stands_for for pattern in PATTERNS} | {case.stands_for for case in CASES.values()}
    assert [heading for heading in headings if heading in known] == list(dict.fromkeys(p.stands_for for p in PATTERNS))
