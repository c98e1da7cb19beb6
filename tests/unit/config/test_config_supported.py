"""What is well formed and cannot be done yet is an error; what has no meaning for the solver is reported."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from quark.onnx.config import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    AutoMixprecisionConfig,
    BFloat16Spec,
    CalibMethod,
    GPTQConfig,
    Int2Spec,
    Int4Spec,
    Int8Spec,
    Int16Spec,
    Int32Spec,
    MX9Spec,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    QuantGranularity,
    QuarotConfig,
    ScaleType,
    SmoothQuantConfig,
    UInt2Spec,
    UInt4Spec,
    UInt8Spec,
    UInt16Spec,
    UInt32Spec,
    XInt8Spec,
)
from quark.onnx.config.algorithm import FastFinetuneConfig
from quark.onnx.config.supported import check_supported, ignored_options
from quark.onnx.errors import ConfigError, UnsupportedError

LAYER = QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec())

# A value other than the default for every keyword, by what the least-squares solver makes of it.
IN_EFFECT: dict[str, Any] = {
    "optim_device": "cuda:0",
    "infer_device": "cuda",
    "fixed_seed": 1,
    "data_size": 5,
    "target_op_type": ("Conv",),
    "update_bias": False,
    "mem_opt_level": 2,
    "cache_dir": "somewhere",
    "ref_model_path": "model.onnx",
    "solver": "least_squares",
    "selective_update": True,
    "parallel": True,
    "select_max_mem_layer": True,
    "keep_worse": True,
}
IN_EFFECT_WITH_SELECTIVE_UPDATE: dict[str, Any] = {"output_index": 1, "evaluator": len}
IGNORED: dict[str, Any] = {
    "output_qdq": True,
    "drop_ratio": 0.5,
    "batch_size": 2,
    "num_batches": 2,
    "num_iterations": 5,
    "learning_rate": 0.5,
    "lr_adjust": (0.1, 0.2),
    "early_stop": True,
    "patience": 1,
    "log_period": 5,
    "reg_param": 0.5,
    "beta_range": (10.0, 2.0),
    "warm_start": 0.5,
    "dynamic_batch": True,
    "num_workers": 2,
    "pin_memory": True,
    "use_gds": True,
}


def reported(config: FastFinetuneConfig, *, in_steps: bool = False) -> list[str]:
    return [option.keyword for option in ignored_options(config, in_steps=in_steps)]


def test_every_keyword_is_in_effect_or_reported() -> None:
    listed = [*IN_EFFECT, *IN_EFFECT_WITH_SELECTIVE_UPDATE, *IGNORED]
    assert sorted(listed) == sorted(field.name for field in fields(AdaRoundConfig))


@pytest.mark.parametrize("keyword", IN_EFFECT)
def test_keywords_in_effect_are_not_reported(keyword: str) -> None:
    assert reported(AdaRoundConfig(**{keyword: IN_EFFECT[keyword]})) == []


@pytest.mark.parametrize("in_steps", [False, True])
def test_output_index_is_in_effect_only_where_outputs_are_compared(in_steps: bool) -> None:
    for name, value in IN_EFFECT_WITH_SELECTIVE_UPDATE.items():
        assert reported(AdaRoundConfig(selective_update=True, **{name: value}), in_steps=in_steps) == []
    for others in ({}, {"selective_update": True, "evaluator": len}):
        (ignored,) = ignored_options(AdaRoundConfig(output_index=0, **others), in_steps=in_steps)
        assert (ignored.keyword, ignored.value) == ("output_index", 0)
        assert "selective_update" in ignored.reason


@pytest.mark.parametrize("keyword", IGNORED)
def test_keywords_without_meaning_are_reported_with_a_reason(keyword: str) -> None:
    (ignored,) = ignored_options(AdaRoundConfig(data_size=5, **{keyword: IGNORED[keyword]}), in_steps=False)
    assert (ignored.keyword, ignored.value) == (keyword, IGNORED[keyword])
    assert ignored.reason


@pytest.mark.parametrize("keyword", IGNORED)
def test_steps_have_a_use_for_all_but_loader_options(keyword: str) -> None:
    config = AdaQuantConfig(**{keyword: IGNORED[keyword]})
    expected = [keyword] if keyword in ("num_workers", "pin_memory", "use_gds") else []
    assert reported(config, in_steps=True) == expected


def test_documented_example_sets_nothing_that_is_reported() -> None:
    assert reported(AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)) == []


def test_defaults_of_the_other_algorithm_are_reported_there() -> None:
    assert reported(AdaQuantConfig(num_iterations=1000)) == ["num_iterations"]


@pytest.mark.parametrize("method", [None, *CalibMethod])
@pytest.mark.parametrize("kind", [Int8Spec, UInt8Spec, XInt8Spec, Int16Spec, UInt16Spec])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_type", ScaleType)
def test_supported_specs(
    method: CalibMethod | None, kind: type[QTensorConfig], symmetric: bool, scale_type: ScaleType
) -> None:
    of_activation = None if method is CalibMethod.MinOutputMSE else method
    activation = kind(symmetric, scale_type, of_activation)
    for granularity in QuantGranularity:
        for weight_kind in (Int8Spec, UInt8Spec, Int16Spec, UInt16Spec, Int4Spec, UInt4Spec):
            weight = weight_kind(symmetric, scale_type, method, granularity)
            check_supported(QConfig(QLayerConfig(activation=activation, weight=weight)))


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        *((kind, "nothing else is supported here") for kind in (Int4Spec, UInt4Spec)),
        *((kind, "onnxruntime .1.32. takes U?Int2 for 8 bits") for kind in (Int2Spec, UInt2Spec)),
        *((kind, "needs AMD Quark's custom operators") for kind in (BFloat16Spec, MX9Spec, Int32Spec, UInt32Spec)),
    ],
)
def test_formats_that_are_not_supported_say_why(kind: type[QTensorConfig], why: str) -> None:
    activations, weights = "Int8 or UInt8 or Int16 or UInt16", "Int8 or UInt8 or Int16 or UInt16 or Int4 or UInt4"
    given = kind().data_type
    with pytest.raises(
        UnsupportedError, match=f"input_tensors.data_type: got {given}, expected {activations}: .*{why}"
    ):
        check_supported(QConfig(QLayerConfig(kind(), weight=Int8Spec())))
    if given.bits == 4:
        return
    with pytest.raises(UnsupportedError, match=f"weight.data_type: got {given}, expected {weights}: .*{why}"):
        check_supported(QConfig(QLayerConfig(UInt8Spec(), weight=kind())))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("method", [method for method in CalibMethod if method is not CalibMethod.MinOutputMSE])
def test_symmetric_ranges_are_for_methods_that_know_two_kinds(method: CalibMethod, symmetric: bool) -> None:
    spec = UInt8Spec(calibration_method=method)
    configs = (
        QConfig(QLayerConfig(spec, weight=Int8Spec()), CalibTensorRangeSymmetric=symmetric),
        QConfig(LAYER, {QLayerConfig(spec): ["conv"]}, CalibTensorRangeSymmetric=symmetric),
        QConfig(LAYER, None, {QLayerConfig(output_tensors=spec): ["Conv"]}, CalibTensorRangeSymmetric=symmetric),
    )
    for config in configs:
        if method in (CalibMethod.MinMax, CalibMethod.Percentile, CalibMethod.LayerwisePercentile):
            check_supported(config)
            continue
        expected = rf"\['CalibTensorRangeSymmetric'\]: got {symmetric}, expected it to be left out: {method!r} has"
        with pytest.raises(UnsupportedError, match=expected):
            check_supported(config)


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        *(
            (
                {"quant_granularity": granularity},
                f"quant_granularity: got {granularity!r}, expected QuantGranularity.Tensor",
            )
            for granularity in (QuantGranularity.Channel, QuantGranularity.Group)
        ),
    ],
)
@pytest.mark.parametrize("role", ["input_tensors", "activation"])
def test_activation_specs_not_supported_yet(role: str, activation: dict[str, Any], message: str) -> None:
    layer = QLayerConfig(**{role: UInt8Spec(**activation)}, weight=Int8Spec())
    with pytest.raises(UnsupportedError, match=f"QConfig.global_config.{role}.{message}"):
        check_supported(QConfig(layer))


@pytest.mark.parametrize("where", ["specific_layer_config", "layer_type_config"])
@pytest.mark.parametrize(
    ("role", "spec", "message"),
    [
        ("input_tensors", Int4Spec(), "data_type: got Int4, expected Int8 or UInt8 or Int16 or UInt16: nothing"),
        ("bias", Int4Spec(), "data_type: got Int4, expected Int8 or UInt8 or Int16 or UInt16 or Int32: nothing"),
        (
            "output_tensors",
            UInt8Spec(quant_granularity=QuantGranularity.Channel),
            "quant_granularity: got QuantGranularity.Channel, expected QuantGranularity.Tensor",
        ),
    ],
)
def test_specs_of_single_layers_not_supported_yet(where: str, role: str, spec: QTensorConfig, message: str) -> None:
    config = QConfig(LAYER, **{where: {QLayerConfig(**{role: spec}): ["Conv"], LAYER: ["Gemm"]}})
    with pytest.raises(UnsupportedError, match=rf"QConfig.{where} of \['Conv'\].{role}.{message}"):
        check_supported(config)


@pytest.mark.parametrize(
    "bias",
    [
        Int8Spec(),
        UInt8Spec(),
        Int16Spec(),
        UInt16Spec(),
        Int32Spec(),
        Int8Spec(quant_granularity=QuantGranularity.Channel),
    ],
)  # fmt: skip
def test_specs_of_biases(bias: QTensorConfig) -> None:
    check_supported(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec(), bias=bias)))


def test_global_outputs_are_the_next_layers_inputs() -> None:
    check_supported(QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec(), output_tensors=UInt8Spec())))
    config = QConfig(QLayerConfig(UInt8Spec(), weight=Int8Spec(), output_tensors=Int8Spec()))
    with pytest.raises(
        UnsupportedError, match=r"QConfig.global_config.output_tensors: got Int8Spec\(\), expected None"
    ):
        check_supported(config)


@pytest.mark.parametrize(
    "algorithm",
    [
        SmoothQuantConfig(alpha=0.7),
        GPTQConfig(),
        QuarotConfig(),
    ],
)
def test_other_algorithms_are_well_formed_and_not_supported_yet(algorithm: AlgoConfig) -> None:
    config = QConfig(LAYER, algo_config=[algorithm, AdaRoundConfig()])
    assert QConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UnsupportedError, match=f"QConfig.algo_config: got {type(algorithm).__name__}.* expected Ada"):
        check_supported(config)


def test_a_search_for_formats_takes_layers_one_by_one() -> None:
    check_supported(QConfig(LAYER, algo_config=[AutoMixprecisionConfig(target_layer_config=LAYER), AdaRoundConfig()]))
    algorithm = AutoMixprecisionConfig(target_layer_config=LAYER, subgraph_json="parts.json")
    with pytest.raises(UnsupportedError, match=r"subgraph_json: got 'parts.json', expected None"):
        check_supported(QConfig(LAYER, algo_config=[algorithm]))
    with pytest.raises(ConfigError, match="metric_default"):
        AutoMixprecisionConfig(target_layer_config=LAYER, metric_default="l3")
