"""AdaRoundConfig and AdaQuantConfig: what they accept, what they say when they do not."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quark.onnx.config.algorithm import (
    TUNABLE_OP_TYPES,
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    FastFinetuneConfig,
)
from quark.onnx.errors import ConfigError, ConfigTypeError, QuarkError

DEFAULTS: dict[str, Any] = {
    "optim_device": "cpu",
    "infer_device": "cpu",
    "fixed_seed": 1705472343,
    "data_size": 1_000_000_000,
    "batch_size": 1,
    "num_batches": 1,
    "num_iterations": 1000,
    "learning_rate": 0.1,
    "early_stop": False,
    "patience": 0,
    "output_index": None,
    "lr_adjust": None,
    "target_op_type": (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "InstanceNormalization",
        "LayerNormalization",
        "GroupNormalization",
        "BatchNormalization",
    ),
    "selective_update": False,
    "evaluator": None,
    "update_bias": None,
    "output_qdq": False,
    "drop_ratio": 1.0,
    "mem_opt_level": 1,
    "cache_dir": None,
    "log_period": 100,
    "ref_model_path": None,
    "dynamic_batch": False,
    "parallel": False,
    "reg_param": 0.01,
    "beta_range": (20.0, 2.0),
    "warm_start": 0.2,
    "select_max_mem_layer": False,
    "num_workers": 1,
    "pin_memory": False,
    "use_gds": False,
    "solver": "auto",
    "keep_worse": False,
}


@pytest.mark.parametrize("algorithm", [AdaRoundConfig, AdaQuantConfig])
def test_help_tells_every_argument(algorithm: type[FastFinetuneConfig]) -> None:
    arguments = inspect.cleandoc(algorithm.__doc__ or "").partition("Args:")[2]
    told = {name for line in re.findall(r"^    (\w[\w, ]*):", arguments, re.MULTILINE) for name in line.split(", ")}
    assert {field.name for field in dataclasses.fields(algorithm)} <= told


positive_ints = st.integers(1, 10**9)
positives = st.floats(1e-9, 1e9)
flags = st.booleans()
paths = st.none() | st.text("ab/.:\\'\" é", min_size=1, max_size=20)
devices = st.sampled_from(["cpu", "cuda"]) | st.integers(0, 99).map("cuda:{}".format)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "optim_device": devices,
    "infer_device": devices,
    "fixed_seed": st.integers(0, 2**64 - 1),
    "data_size": positive_ints,
    "batch_size": positive_ints,
    "num_batches": positive_ints,
    "num_iterations": positive_ints,
    "learning_rate": positives,
    "early_stop": flags,
    "patience": st.integers(0, 99),
    "output_index": st.none() | st.integers(0, 99),
    "lr_adjust": st.none() | st.tuples(positives, positives),
    "target_op_type": st.lists(st.sampled_from(TUNABLE_OP_TYPES), min_size=1),
    "selective_update": flags,
    "update_bias": st.none() | flags,
    "output_qdq": flags,
    "drop_ratio": st.floats(0, 1),
    "mem_opt_level": st.integers(0, 2),
    "cache_dir": paths,
    "log_period": positive_ints,
    "ref_model_path": paths,
    "dynamic_batch": flags,
    "parallel": flags,
    "reg_param": st.floats(0, 1e9),
    "beta_range": st.tuples(positives, positives).map(lambda pair: tuple(sorted(pair, reverse=True))),
    "warm_start": st.floats(0, 1, exclude_max=True),
    "select_max_mem_layer": flags,
    "num_workers": st.integers(0, 99),
    "pin_memory": flags,
    "use_gds": flags,
    "solver": st.sampled_from(["auto", "gradient", "least_squares"]),
}
kinds = st.sampled_from([AdaRoundConfig, AdaQuantConfig])
options = st.fixed_dictionaries({}, optional=OPTIONS).filter(
    lambda given: not (given.get("parallel") and given.get("selective_update"))
)
configs = st.builds(lambda kind, options: kind(**options), kinds, options)


def test_defaults_are_the_documented_ones() -> None:
    assert dataclasses.asdict(AdaRoundConfig()) == DEFAULTS
    assert dataclasses.asdict(AdaQuantConfig()) == {**DEFAULTS, "num_iterations": 3000, "learning_rate": 1e-5}


@pytest.mark.parametrize("kind", [AdaRoundConfig, AdaQuantConfig])
def test_signature_lists_the_keywords_in_order(kind: type[FastFinetuneConfig]) -> None:
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == list(DEFAULTS)
    assert {parameter.kind for parameter in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["num_iterations"].default == kind().num_iterations


@given(configs)
def test_written_and_read_back_is_equal(config: FastFinetuneConfig) -> None:
    written = json.loads(json.dumps(config.to_dict()))
    assert AlgoConfig.from_dict(written) == config
    assert type(config).from_dict(written) == config
    assert eval(repr(config)) == config
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config


@given(configs, configs)
def test_equal_configs_and_only_they_have_one_dict(a: FastFinetuneConfig, b: FastFinetuneConfig) -> None:
    assert (a == b) == (a.to_dict() == b.to_dict())
    assert a != b or hash(a) == hash(b)


def test_the_two_algorithms_are_never_equal() -> None:
    same: dict[str, Any] = {"num_iterations": 10, "learning_rate": 0.5}
    one, other = (kind(**same) for kind in (AdaRoundConfig, AdaQuantConfig))
    assert one != other


def test_only_what_differs_from_the_default_is_shown_and_written() -> None:
    config = AdaQuantConfig(num_iterations=1000, batch_size=1, beta_range=(10, 2))
    assert repr(config) == "AdaQuantConfig(num_iterations=1000, beta_range=(10.0, 2.0))"
    assert config.to_dict() == {"name": "adaquant", "num_iterations": 1000, "beta_range": [10.0, 2.0]}


def test_values_are_stored_as_python_types() -> None:
    given: dict[str, Any] = {
        "num_iterations": np.int32(7),
        "learning_rate": np.float32(0.25),
        "early_stop": np.True_,
        "target_op_type": ["Conv"],
        "drop_ratio": 1,
        "cache_dir": Path("somewhere"),
    }
    config = AdaRoundConfig(**given)
    assert [type(value) for value in config.changed().values()] == [int, float, bool, tuple, str]
    assert type(config.drop_ratio) is float
    assert config == AdaRoundConfig(
        num_iterations=7, learning_rate=0.25, early_stop=True, target_op_type=("Conv",), cache_dir="somewhere"
    )


WRONG_VALUES = [
    ("optim_device", "gpu", '"cpu", "cuda" or "cuda:N"'),
    ("infer_device", "cuda:0,1", '"cpu", "cuda" or "cuda:N"'),
    ("infer_device", "cpu\n", '"cpu", "cuda" or "cuda:N"'),
    ("fixed_seed", -1, "an int from 0 to 2**64 - 1"),
    ("fixed_seed", 2**64, "an int from 0 to 2**64 - 1"),
    ("data_size", 0, "an int >= 1"),
    ("batch_size", 0, "an int >= 1"),
    ("num_batches", 0, "an int >= 1"),
    ("num_iterations", 0, "an int >= 1"),
    ("learning_rate", 0.0, "a number > 0"),
    ("learning_rate", math.nan, "a number > 0"),
    ("learning_rate", math.inf, "a number > 0"),
    ("patience", -1, "an int >= 0"),
    ("output_index", -1, "an int >= 0, or None"),
    ("lr_adjust", (1.0,), "two numbers > 0 (error threshold, new learning rate), or a callable, or None"),
    ("lr_adjust", (0.1, 0), "two numbers > 0 (error threshold, new learning rate), or a callable, or None"),
    ("target_op_type", (), f"a list of one or more of {', '.join(TUNABLE_OP_TYPES)}"),
    ("drop_ratio", 1.01, "a number from 0 to 1"),
    ("drop_ratio", -0.01, "a number from 0 to 1"),
    ("mem_opt_level", 3, "0, 1 or 2"),
    ("mem_opt_level", -1, "0, 1 or 2"),
    ("cache_dir", "", "a path that is not empty, or None"),
    ("log_period", 0, "an int >= 1"),
    ("reg_param", -1.0, "a number >= 0"),
    ("beta_range", (2, 20), "two numbers (start, end), start >= end > 0"),
    ("beta_range", (20, 0), "two numbers (start, end), start >= end > 0"),
    ("beta_range", (20, 2, 1), "two numbers (start, end), start >= end > 0"),
    ("warm_start", 1.0, "a number >= 0 and < 1"),
    ("num_workers", -1, "an int >= 0"),
    ("solver", "newton", "one of auto, gradient, least_squares"),
]


@pytest.mark.parametrize(("keyword", "value", "expected"), WRONG_VALUES)
def test_wrong_value(keyword: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AdaRoundConfig(**{keyword: value})
    assert str(caught.value) == f"AdaRoundConfig.{keyword}: got {value!r}, expected {expected}"
    assert isinstance(caught.value, ValueError)
    assert not isinstance(caught.value, TypeError)


WRONG_TYPES = [
    *((name, "1") for name, default in DEFAULTS.items() if isinstance(default, (bool, int, float))),
    *((name, True) for name, default in DEFAULTS.items() if type(default) in (int, float)),
    *((name, 1) for name, default in DEFAULTS.items() if type(default) is bool),
    *((name, None) for name, default in DEFAULTS.items() if default is not None),
    ("num_iterations", 1000.0),
    ("output_index", "1"),
    ("output_index", False),
    ("evaluator", "accuracy"),
    ("optim_device", 0),
    ("target_op_type", "Conv"),
    ("target_op_type", [1]),
    ("lr_adjust", 0.5),
    ("lr_adjust", ("1", 2)),
    ("beta_range", 20),
    ("cache_dir", b"bytes"),
    ("ref_model_path", 1),
    ("update_bias", 1),
    ("solver", 1),
]


@pytest.mark.parametrize(("keyword", "value"), WRONG_TYPES)
def test_wrong_type(keyword: str, value: Any) -> None:
    with pytest.raises(TypeError) as caught:
        AdaQuantConfig(**{keyword: value})
    message = str(caught.value)
    assert message.startswith(f"AdaQuantConfig.{keyword}: got {value!r}, expected ")
    assert message.endswith(f"({type(value).__name__} given)")
    assert isinstance(caught.value, ConfigTypeError)
    assert isinstance(caught.value, QuarkError)


def test_unknown_op_type_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'Convtranspose' is none of them, did you mean 'ConvTranspose'"):
        AdaRoundConfig(target_op_type=["Conv", "Convtranspose"])


@pytest.mark.parametrize(
    ("keyword", "hint"),
    [
        ("num_iteration", "did you mean 'num_iterations'"),
        ("NumIterations", "did you mean 'num_iterations'"),
        ("lr", "known: optim_device, infer_device, .* and 21 more"),
    ],
)
def test_unknown_keyword_names_the_nearest(keyword: str, hint: str) -> None:
    with pytest.raises(TypeError, match=rf"AdaRoundConfig\(\) got an unexpected keyword '{keyword}'; {hint}"):
        AdaRoundConfig(**{keyword: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [AlgoConfig, FastFinetuneConfig])
def test_the_bases_are_abstract(kind: type[AlgoConfig]) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__}\(\) is abstract; .*: AdaRoundConfig, AdaQuantConfig"):
        kind()


def test_nothing_can_be_changed() -> None:
    config = AdaRoundConfig()
    with pytest.raises(AttributeError, match="num_iterations"):
        config.num_iterations = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match="surprise"):
        config.surprise = 5  # type: ignore[attr-defined]
    assert dataclasses.replace(config, num_iterations=5) == AdaRoundConfig(num_iterations=5)
    with pytest.raises(ConfigError, match="num_iterations: got 0"):
        dataclasses.replace(config, num_iterations=0)


def test_callable_lr_adjust_is_kept_and_cannot_be_written() -> None:
    def halve(error: float) -> float:
        return error / 2

    config = AdaRoundConfig(lr_adjust=halve)
    assert config.lr_adjust is halve
    with pytest.raises(ConfigError, match=r"AdaRoundConfig.lr_adjust: .* a callable cannot"):
        config.to_dict()


def test_an_evaluator_is_kept_and_cannot_be_written() -> None:
    def accuracy(session: Any) -> float:
        return float(session is None)

    config = AdaQuantConfig(selective_update=True, evaluator=accuracy)
    assert config.evaluator is accuracy
    assert config == dataclasses.replace(config)
    with pytest.raises(ConfigError, match=r"AdaQuantConfig.evaluator: .* a callable cannot"):
        config.to_dict()


def test_an_evaluator_needs_selective_update() -> None:
    with pytest.raises(ConfigError, match=r"AdaRoundConfig.evaluator: .*, or selective_update=True with it"):
        AdaRoundConfig(evaluator=len)
    with pytest.raises(ConfigError, match="selective_update=True"):
        dataclasses.replace(AdaQuantConfig(selective_update=True, evaluator=len), selective_update=False)


def test_parallel_and_selective_update_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"AdaQuantConfig.parallel: got True, expected False with selective_update"):
        AdaQuantConfig(parallel=True, selective_update=True)
    with pytest.raises(ConfigError, match="False with selective_update"):
        AdaRoundConfig.from_dict({"parallel": True, "selective_update": True})


@pytest.mark.parametrize(
    ("kind", "written", "message"),
    [
        (
            AlgoConfig,
            {},
            r"AlgoConfig.from_dict\(\): got {}, expected the key 'name' with one of the kinds; known: adaround, adaqu",
        ),
        (AlgoConfig, {"name": ["adaround"]}, "expected the key 'name' with one of the kinds; did you mean 'adaround'"),
        (AdaRoundConfig, {"name": "adaquant"}, "expected the key 'name' with one of the kinds; .*adaround"),
        (
            AlgoConfig,
            {"name": "adaround", "num_iters": 1},
            "unknown key 'num_iters'; did you mean 'num_iterations'",
        ),
        (AlgoConfig, {"name": "adaround", "num_iterations": 0}, "AdaRoundConfig.num_iterations: got 0"),
        (AlgoConfig, ["adaround"], r"AlgoConfig.from_dict\(\): got \['adaround'\], expected a dict"),
    ],
)
def test_from_dict_rejects(kind: type[AlgoConfig], written: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind.from_dict(written)


def test_from_dict_of_a_concrete_class_needs_no_name() -> None:
    assert AdaQuantConfig.from_dict({"num_iterations": 5}) == AdaQuantConfig(num_iterations=5)
