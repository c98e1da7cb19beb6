"""Models without a layer that can be finetuned are quantized all the same, with a warning; finetune() refuses them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import Reader, build, run, samples, separable_cnn

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    CLEConfig,
    Int8Spec,
    ModelError,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    Report,
    UInt8Spec,
    finetune,
)
from quark.onnx.model_files.quantized_form import is_quantized

LAYER = QLayerConfig(UInt8Spec(), weight=Int8Spec())


def quantized(model: onnx.ModelProto, *algorithms: object) -> tuple[onnx.ModelProto, Report]:
    quantizer = ModelQuantizer(QConfig(LAYER, algo_config=list(algorithms)))
    result = quantizer.quantize_model(model, None, Reader(samples(model, 12)))
    return result, quantizer.report


def einsum() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((4, 3))
    return build('(float[N,4] x) => (float[N,3] y) { [product] y = Einsum<equation="bi,io->bo">(x, w) }', w=weight)


def einsum_and_more() -> onnx.ModelProto:
    return build(
        '(float[N,4] x) => (float[N,3] y) { s = Sigmoid(x) [product] h = Einsum<equation="bi,io->bo">(s, w) '
        "y = Add(h, b) }",
        w=np.random.default_rng(0).standard_normal((4, 3)),
        b=np.ones(3),
    )


def lstm() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    shapes = {"w": (1, 12, 4), "r": (1, 12, 3)}
    return build(
        "(float[N,1,4] x) => (float[N,1,1,3] y) { [cell] y = LSTM<hidden_size=3>(x, w, r) }",
        **{name: random.standard_normal(shape) for name, shape in shapes.items()},
    )


def no_layer() -> onnx.ModelProto:
    return build("(float[N,3,8,8] x) => (float[N,3,1,1] y) { t = Relu(x) y = GlobalAveragePool(t) }")


def computed_weight() -> onnx.ModelProto:
    return build("(float[N,4,4] x) => (float[N,4,4] y) { [product] y = MatMul(x, x) }")


NONE = "the model has no node of the types Conv, .*MatMul"
MODELS = {
    einsum: r"product \(Einsum\): no solver tunes the weights",
    einsum_and_more: r"product \(Einsum\): no solver tunes the weights",
    lstm: r"cell \(LSTM\): no solver tunes the weights",
    no_layer: NONE,
    computed_weight: r"product \(MatMul\): its weight is computed by the model",
}
ALGORITHMS = {
    "adaround": AdaRoundConfig(),
    "gradient": AdaRoundConfig(solver="gradient", num_iterations=10),
    "selective": AdaQuantConfig(selective_update=True),
    "float first": AdaRoundConfig(mem_opt_level=0),
    "in files": AdaRoundConfig(mem_opt_level=2),
    "the largest": AdaRoundConfig(select_max_mem_layer=True),
    "side by side": AdaRoundConfig(parallel=True),
}


@pytest.mark.parametrize(("make", "why"), MODELS.items(), ids=[make.__name__ for make in MODELS])
@pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS)
def test_what_plain_quantization_gives(
    make: Callable[[], onnx.ModelProto], why: str, algorithm: AdaRoundConfig | AdaQuantConfig
) -> None:
    model = make()
    plain, _ = quantized(model)
    result, report = quantized(model, algorithm)
    assert result.graph == plain.graph
    assert report.layers == ()
    (line,) = (line for line in report.warnings if "has no effect" in line)
    name = type(algorithm).__name__
    assert line.startswith(f"{name} has no effect: no layer can be finetuned: ")
    assert re.search(why, line)


def test_with_equalisation_and_bias_correction() -> None:
    model = einsum_and_more()
    plain, _ = quantized(model)
    result, report = quantized(model, CLEConfig(), BiasCorrectionConfig(), AdaRoundConfig())
    assert result.graph == plain.graph
    assert [line.split()[0] for line in report.warnings if "has no effect" in line] == [
        "CLEConfig", "AdaRoundConfig", "BiasCorrectionConfig",
    ]  # fmt: skip


@pytest.mark.parametrize("make", [einsum, lstm])
def test_where_nothing_is_quantized_the_report_says_so(make: Callable[[], onnx.ModelProto]) -> None:
    model = make()
    for algorithms in ([], [AdaRoundConfig()]):
        result, report = quantized(model, *algorithms)
        assert not is_quantized(result)
        assert any(line.startswith("nothing is quantized") for line in report.warnings)
        data = samples(model, 5)
        for want, have in zip(run(model, data), run(result, data), strict=True):
            np.testing.assert_allclose(want, have, rtol=1e-6)
    assert not any("nothing is quantized" in line for line in quantized(separable_cnn())[1].warnings)


def test_nothing_of_the_chosen_type(tmp_path: Path) -> None:
    model = separable_cnn()
    result, report = quantized(model, AdaRoundConfig(target_op_type=["MatMul"]))
    assert result.graph == quantized(model)[0].graph
    assert any("the model has no node of the types MatMul" in line for line in report.warnings)
    with pytest.raises(ModelError, match="no layer can be finetuned: the model has no node of the types MatMul"):
        finetune(
            model, result, tmp_path / "q.onnx", Reader(samples(model, 12)), AdaRoundConfig(target_op_type=["MatMul"])
        )
    assert not list(tmp_path.iterdir())


def test_finetune_refuses_what_it_would_not_change() -> None:
    for make, why in ((computed_weight, MODELS[computed_weight]), (einsum_and_more, MODELS[einsum_and_more])):
        model = make()
        with pytest.raises(ModelError, match=f"no layer can be finetuned: {why}"):
            finetune(model, quantized(model)[0], None, Reader(samples(model, 12)), AdaRoundConfig())


def test_of_many_reasons_the_first_are_said() -> None:
    """Hundreds of layers that are left do not make a message of hundreds of lines; the report has them all."""
    nodes = [
        helper.make_node("Einsum", [f"t{i}", "w"], [f"t{i + 1}"], f"e{i}", equation="bi,io->bo") for i in range(300)
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("t0", onnx.TensorProto.FLOAT, ["N", 4])],
            [helper.make_tensor_value_info("t300", onnx.TensorProto.FLOAT, ["N", 4])],
            [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    _, report = quantized(model, AdaRoundConfig())
    assert len(report.skipped) == 300
    (line,) = (line for line in report.warnings if "has no effect" in line)
    assert line.endswith("; and 292 more")
