"""QConfig: its checks, its extra options, and that nothing in it can change."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx.config import (
    AdaQuantConfig,
    AdaRoundConfig,
    CalibMethod,
    Int8Spec,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from quark.onnx.errors import ConfigError, ConfigTypeError

LAYER = QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec())
OTHER = QLayerConfig(input_tensors=Int8Spec(), weight=Int8Spec(calibration_method=CalibMethod.MinMax))

names = st.lists(st.text("ab/.:*( é", min_size=1, max_size=5), min_size=1, max_size=3)
choices = st.lists(st.sampled_from(["conv1", "^layer.*", "^a|b$"]) | st.tuples(names, names), max_size=3)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "specific_layer_config": st.none() | st.dictionaries(st.sampled_from([LAYER, QLayerConfig()]), choices),
    "layer_type_config": st.none() | st.dictionaries(st.sampled_from([OTHER, QLayerConfig(), None]), names),
    "exclude": st.none() | choices,
    "algo_config": st.none() | st.sampled_from([[], [AdaRoundConfig()], (AdaQuantConfig(num_iterations=5),)]),
    "use_external_data_format": st.booleans(),
    "extra_options": st.none()
    | st.fixed_dictionaries(
        {},
        optional={
            "NumThreads": st.integers(1, 64),
            "Percentile": st.floats(0, 100, exclude_min=True),
            "OpTypesToQuantize": names,
            "PercentileCandidates": st.lists(st.floats(0, 100, exclude_min=True), min_size=1, max_size=3),
            "LWPMetric": st.sampled_from(["mae", "mse"]),
            "NumQuantizedBins": st.integers(1, 2048).map(lambda n: 2 * n),
            "CalibTensorRangeSymmetric": st.booleans(),
            "Int32Bias": st.booleans(),
        },
    ),
}
configs = st.fixed_dictionaries({}, optional=ARGUMENTS).map(lambda arguments: QConfig(LAYER, **arguments))


def test_documented_example() -> None:
    layer = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
    adaround = AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)
    config = QConfig(global_config=layer, algo_config=[adaround])
    assert config.activation_spec == UInt8Spec()
    assert config.weight_spec == Int8Spec()
    assert config.fast_finetune is adaround
    assert QConfig(layer).fast_finetune is None


def test_signature_has_the_documented_order() -> None:
    parameters = list(inspect.signature(QConfig).parameters)
    assert parameters[0] == "global_config"
    assert parameters[1:7] == list(ARGUMENTS)


def test_none_means_nothing_given() -> None:
    assert QConfig(LAYER, None, None, None, None, extra_options=None) == QConfig(LAYER)


@given(configs)
def test_written_and_read_back_is_equal(config: QConfig) -> None:
    assert QConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert eval(repr(config)) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == dataclasses.replace(config) == config
    assert {config: "found"}[copy.deepcopy(config)] == "found"


def test_what_was_passed_in_stays_the_callers_and_what_is_inside_cannot_change() -> None:
    exclude, algorithms, options = (["conv1"], [AdaRoundConfig()], {"OpTypesToQuantize": ["Conv"]})
    layer_types: dict[QLayerConfig | None, list[str]] = {None: ["Add"]}
    config = QConfig(LAYER, None, layer_types, exclude, algorithms, extra_options=options)
    before = copy.deepcopy(config)
    exclude.append("conv2")
    algorithms.clear()
    options["OpTypesToQuantize"].append("Gemm")
    layer_types[None].append("Mul")
    assert config == before
    with pytest.raises(AttributeError, match="exclude"):
        config.exclude = ()  # type: ignore[misc]
    with pytest.raises(TypeError, match="item assignment"):
        config.extra_options["NumThreads"] = 1
    with pytest.raises(TypeError, match="item assignment"):
        config.layer_type_config[None] = ("Mul",)  # type: ignore[index]
    assert isinstance(config.exclude, tuple)
    assert isinstance(config.algo_config, tuple)


def test_extra_options_as_a_dict_and_as_loose_keywords_are_the_same() -> None:
    loose = QConfig(LAYER, NumThreads=2, Percentile=99)
    assert loose == QConfig(LAYER, extra_options={"NumThreads": 2, "Percentile": 99.0})
    assert loose == QConfig(LAYER, extra_options={"NumThreads": 2}, Percentile=99)
    assert loose.extra_options == {"NumThreads": 2, "Percentile": 99.0}
    assert loose.extra_options.get("OpTypesToQuantize", "absent") == "absent"


REJECTED = [
    (
        {"global_config": UInt8Spec()},
        TypeError,
        r"QConfig.global_config: got UInt8Spec\(\), expected a QLayerConfig \(UInt8Spec given\)",
    ),
    (
        {"global_config": QLayerConfig(weight=Int8Spec())},
        ValueError,
        r"QConfig.global_config: got QLayerConfig\(.*\), expected input_tensors \(or activation\) too",
    ),
    (
        {"global_config": QLayerConfig(activation=UInt8Spec())},
        ValueError,
        r"QConfig.global_config: got QLayerConfig\(.*\), expected weight too",
    ),
    (
        {"specific_layer_config": {QLayerConfig(activation=UInt8Spec()): ["conv1"]}},
        ValueError,
        r"QConfig.specific_layer_config: got .*, expected input_tensors instead of activation",
    ),
    (
        {"layer_type_config": {QLayerConfig(activation=UInt8Spec()): ["Conv"]}},
        ValueError,
        r"QConfig.layer_type_config: got .*, expected input_tensors instead of activation",
    ),
    (
        {"specific_layer_config": {None: ["conv1"]}},
        TypeError,
        r"QConfig.specific_layer_config: got .*, expected a dict from QLayerConfig to a list of node names",
    ),
    (
        {"specific_layer_config": [LAYER]},
        TypeError,
        r"QConfig.specific_layer_config: .*, expected a dict from QLayerConfig to .* \(list given\)",
    ),
    (
        {"layer_type_config": {"Conv": LAYER}},
        TypeError,
        r"QConfig.layer_type_config: .*, expected a dict from QLayerConfig or None to a list of op types",
    ),
    ({"layer_type_config": {None: "Conv"}}, TypeError, "QConfig.layer_type_config: .* a list of op types"),
    ({"layer_type_config": {None: []}}, ValueError, "QConfig.layer_type_config: .* a list of op types"),
    (
        {"exclude": "conv1"},
        TypeError,
        r"QConfig.exclude: got 'conv1', expected a list of node names, .*\(str given",
    ),
    ({"exclude": [1]}, TypeError, "QConfig.exclude: .* expected a list of node names"),
    ({"exclude": [""]}, ValueError, "QConfig.exclude: .* expected a list of node names"),
    ({"exclude": [("a", "b")]}, TypeError, r"QConfig.exclude: .* \(\[start nodes\], \[end nodes\]\) pairs"),
    ({"exclude": [(["a"], ["b"], ["c"])]}, TypeError, "QConfig.exclude: .* pairs"),
    (
        {"exclude": ["^conv("]},
        ValueError,
        r"QConfig.exclude: .* expected regular expressions that compile; '\^conv\(' does not: ",
    ),
    (
        {"algo_config": AdaRoundConfig()},
        TypeError,
        "QConfig.algo_config: .* expected a list of algorithm configs",
    ),
    (
        {"algo_config": [AdaRoundConfig]},
        TypeError,
        "QConfig.algo_config: .* expected a list of algorithm configs",
    ),
    *(
        (
            {"algo_config": pair},
            ValueError,
            "QConfig.algo_config: got .*, expected only one of AdaRoundConfig and AdaQuantConfig, once",
        )
        for pair in (
            [AdaRoundConfig(), AdaQuantConfig()],
            [AdaQuantConfig(), AdaRoundConfig()],
            [AdaRoundConfig(), AdaRoundConfig()],
        )
    ),
    (
        {"use_external_data_format": None},
        TypeError,
        "QConfig.use_external_data_format: got None, expected True or",
    ),
    ({"extra_options": 1}, TypeError, "QConfig.extra_options: got 1, expected a dict"),
    (
        {"extra_options": {"NumThread": 1}},
        ValueError,
        "QConfig.extra_options: got the unknown option 'NumThread'; did you mean 'NumThreads'",
    ),
    (
        {"extra_options": {"xyz": {}}},
        ValueError,
        r"unknown option 'xyz'; known: NumThreads, MaxMemory, MaxFloatShare, .* and \d+ more",
    ),
    (
        {"extra_options": {"NumThreads": 0}},
        ValueError,
        r"extra_options\['NumThreads'\]: got 0, expected an int from 1 to 1024",
    ),
    (
        {"extra_options": {"NumThreads": True}},
        TypeError,
        r"extra_options\['NumThreads'\]: got True, expected an int",
    ),
    (
        {"Percentile": 0.0},
        ValueError,
        r"extra_options\['Percentile'\]: got 0.0, expected a number above 0, at most",
    ),
    (
        {"Percentile": 100.1},
        ValueError,
        r"\['Percentile'\]: got 100.1, expected a number above 0, at most 100",
    ),
    ({"PercentileCandidates": []}, ValueError, r"got \[\], expected a list of numbers above 0, at most 100"),
    ({"PercentileCandidates": 99.9}, TypeError, r"\['PercentileCandidates'\]: got 99.9, expected a list of numbers"),
    ({"PercentileCandidates": [99, 0]}, ValueError, r"got \[99, 0\], expected a list of numbers above 0"),
    ({"LWPMetric": "l2"}, ValueError, r"""\['LWPMetric'\]: got 'l2', expected "mae" or "mse\""""),
    ({"NumQuantizedBins": 127}, ValueError, "got 127, expected an even int from 2 to 4096"),
    ({"Int32Bias": 1}, TypeError, r"\['Int32Bias'\]: got 1, expected True or False"),
    (
        {"OpTypesToQuantize": "Conv"},
        TypeError,
        r"\['OpTypesToQuantize'\]: got 'Conv', expected a list of op types",
    ),
    (
        {"extra_options": {"NumThreads": 1}, "NumThreads": 2},
        ValueError,
        "QConfig.NumThreads: got 2, expected NumThreads either in extra_options or as a keyword, not both",
    ),
    ({"exlude": []}, TypeError, r"QConfig\(\) got an unexpected keyword 'exlude'; did you mean 'exclude'"),
    (
        {"num_threads": 1},
        TypeError,
        r"QConfig\(\) got an unexpected keyword 'num_threads'; did you mean 'NumThreads'",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), REJECTED)
def test_rejects(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        QConfig(**{"global_config": LAYER, **arguments})
    assert isinstance(caught.value, ConfigError)
    assert isinstance(caught.value, ConfigTypeError) == (error is TypeError)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, r"QConfig.from_dict\(\): got {}, expected the key 'global_config' too"),
        ({"global_config": {}, "algo_configs": []}, "unknown key 'algo_configs'; did you mean 'algo_config'"),
        ({"global_config": 1}, "QConfig.global_config: got 1, expected a QLayerConfig"),
        (
            {"global_config": LAYER.to_dict(), "algo_config": [1]},
            r"AlgoConfig.from_dict\(\): got 1, expected a dict",
        ),
        (
            {"global_config": LAYER.to_dict(), "specific_layer_config": [1]},
            "QConfig.specific_layer_config: got ",
        ),
        (
            {"global_config": LAYER.to_dict(), "extra_options": {"Percentile": 0}},
            r"extra_options\['Percentile'\]",
        ),
    ],
)
def test_from_dict_rejects(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QConfig.from_dict(written)
