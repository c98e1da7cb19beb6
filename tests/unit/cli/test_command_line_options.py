"""Options come from the configuration classes: none is missing, none says something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import click
import pytest

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    BiasCorrectionConfig,
    CLEConfig,
    ConfigError,
    ImagePreprocessing,
    Int8Spec,
    QConfig,
    QLayerConfig,
    QTensorConfig,
    UInt8Spec,
)
from quark.onnx.cli.config_options import ConfigOption, described_fields, kebab
from quark.onnx.cli.configuration import configuration
from quark.onnx.cli.main import program
from quark.onnx.cli.plain_values import read_file, read_value, written_text
from quark.onnx.config.amd_quark.presets import PRESETS
from quark.onnx.config.extra_options import ExtraOptions
from quark.onnx.quantization.quantize import USUAL_CONFIG

COMMANDS = program().commands
QUANTIZE = COMMANDS["quantize"]

# The classes that are spelled out as options, and where their fields stand in a written configuration.
CLASSES = {
    ("image",): ImagePreprocessing,
    ("algo_config", "finetuning"): AdaRoundConfig,
    ("algo_config", "cle"): CLEConfig,
    ("algo_config", "bias_correction"): BiasCorrectionConfig,
    ("extra_options",): ExtraOptions,
    ("global_config", "activation"): QTensorConfig,
    ("global_config", "weight"): QTensorConfig,
}


def fields_of(cls: type) -> list[str]:
    return [n for n, hint in get_type_hints(cls, include_extras=True).items() if get_origin(hint) is Annotated]


def options_by_path() -> dict[tuple[str, ...], list[ConfigOption]]:
    found: dict[tuple[str, ...], list[ConfigOption]] = {}
    for param in QUANTIZE.params:
        if isinstance(param, ConfigOption):
            found.setdefault(param.path, []).append(param)
    return found


def config_of(*words: str, command: click.Command = QUANTIZE) -> QConfig:
    names = [p.name or "" for p in command.params if isinstance(p, click.Argument)]
    return configuration(command.make_context(command.name, [*words, *names]))[0]


@pytest.mark.parametrize("path", CLASSES, ids=".".join)
def test_every_field_is_an_option_with_the_words_of_its_class(path: tuple[str, ...]) -> None:
    cls, options = CLASSES[path], options_by_path()
    described = described_fields(cls)
    for field in fields_of(cls):
        if (cls, field) == (QTensorConfig, "data_type"):  # the format has an option of its own, --weight
            continue
        assert described[field], f"the docstring of {cls.__name__} does not describe {field}"
        (option,) = options[(*path, field)]
        said = option.full_help.casefold()
        assert said.startswith(described[field].casefold())


@pytest.mark.parametrize("field", ["exclude", "use_external_data_format"])
def test_fields_of_the_configuration_itself(field: str) -> None:
    assert (field,) in options_by_path()


def test_no_two_options_share_a_name() -> None:
    for command in COMMANDS.values():
        names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
        assert len(names) == len(set(names))


def test_defaults_are_those_of_the_classes() -> None:
    (rate,) = options_by_path()["algo_config", "finetuning", "learning_rate"]
    assert f"[default: {AdaRoundConfig().learning_rate}; AdaQuant: {AdaQuantConfig().learning_rate}]" in rate.help
    (crop,) = options_by_path()["image", "crop"]
    assert "[default: 1.0]" in crop.help


@pytest.mark.parametrize(
    ("name", "option"),
    [("num_iterations", "num-iterations"), ("NumThreads", "num-threads"), ("LWPMetric", "lwp-metric"),
     ("RemoveQDQConvRelu", "remove-qdq-conv-relu"), ("Int32Bias", "int32-bias")],
)  # fmt: skip
def test_names(name: str, option: str) -> None:
    assert kebab(name) == option


def test_without_options_the_configuration_is_the_usual_one() -> None:
    assert config_of() == USUAL_CONFIG
    assert config_of(command=COMMANDS["finetune"]) == USUAL_CONFIG


def test_options_change_what_they_name() -> None:
    got = config_of(
        "--num-iterations", "7", "--learning-rate", "1e-3", "--early-stop", "--beta-range", "10,3",
        "--solver", "gradient", "--target-op-type", "Conv", "--target-op-type", "Gemm", "--no-update-bias",
        "--cache-dir", "7", "--num-threads", "3", "--weight", "int4", "--weight-quant-granularity", "group",
        "--activation-symmetric",
        "--activation-calibration-method", "minmax", "--cle-steps", "2", "--bias-correction", "--exclude", "a,b",
        "--exclude", "^c", "--exclude", "[[a], [b]]", "--percentile-candidates", "99,99.9",
        "--set", "extra_options.BlockSize=16",
    )  # fmt: skip
    from quark.onnx import CalibMethod, Int4Spec, QuantGranularity

    want = QConfig(
        QLayerConfig(
            activation=UInt8Spec(symmetric=True, calibration_method=CalibMethod.MinMax),
            weight=Int4Spec(quant_granularity=QuantGranularity.Group),
        ),
        exclude=["a,b", "^c", (["a"], ["b"])],
        algo_config=[
            AdaRoundConfig(
                num_iterations=7,
                learning_rate=1e-3,
                early_stop=True,
                beta_range=(10, 3),
                solver="gradient",
                target_op_type=["Conv", "Gemm"],
                update_bias=False,
                cache_dir="7",
            ),
            BiasCorrectionConfig(),
            CLEConfig(cle_steps=2),
        ],
        extra_options={"NumThreads": 3, "PercentileCandidates": (99, 99.9), "BlockSize": 16},
    )
    assert set(got.algo_config) == set(want.algo_config)
    assert got.global_config == want.global_config
    assert got.extra_options == want.extra_options
    assert got.exclude == want.exclude


def test_another_algorithm_has_its_own_defaults() -> None:
    assert config_of("--adaquant").algo_config == (AdaQuantConfig(),)
    assert config_of("--preset", "XINT8_ADAROUND", "--adaquant").algo_config == (AdaQuantConfig(),)
    assert config_of("--no-finetuning").algo_config == ()
    assert config_of("--num-iterations", "5", "--adaquant").algo_config == (AdaQuantConfig(num_iterations=5),)


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    assert config_of("--preset", name) == PRESETS[name]


def test_an_option_beside_a_preset() -> None:
    got = config_of("--preset", "A8W8_ADAROUND", "--activation-quant-granularity", "tensor", "--num-iterations", "9")
    assert got.fast_finetune.num_iterations == 9
    assert got.fast_finetune.data_size == PRESETS["A8W8_ADAROUND"].fast_finetune.data_size
    assert got.activation_spec == Int8Spec()


def score(session: object) -> float:  # noqa: ARG001
    return 0.0


def test_functions_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "of_mine.py").write_text("def score(session):\n    return 0.0\n")
    monkeypatch.chdir(tmp_path)
    got = config_of("--selective-update", "--evaluator", "of_mine:score").fast_finetune
    assert got.evaluator(None) == 0.0
    with pytest.raises(ConfigError, match="no module 'of_nobody'"):
        config_of("--selective-update", "--evaluator", "of_nobody:score")
    with pytest.raises(ConfigError, match="the module 'of_mine' has no 'scores'"):
        config_of("--selective-update", "--evaluator", "of_mine:scores")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-iterations", "0"], "got '0', expected an int >= 1"),
        (["--num-iterations", "many"], "got 'many', expected an int >= 1"),
        (["--solver", "gradents"], "got 'gradents', expected one of auto, gradient, least_squares"),
        (["--weight-scale-type", "float64"], r"expected a member of ScaleType \(Float32, PowerOf2, Int16\)"),
        (["--preset", "XINT8_ADAROUNDS"], "did you mean 'XINT8_ADAROUND'"),
        (["--adaround", "--adaquant"], "exclude each other"),
        (["--no-finetuning", "--num-iterations", "5"], "--num-iterations needs --adaround or --adaquant"),
        (["--preset", "XINT8", "--config", "c.yaml"], "--preset and --config exclude each other"),
        (["--set", "exclude"], "expected FIELD=VALUE"),
        (["--num-iteration", "5"], "No such option:? '?--num-iteration"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_with_what_is_right(words: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message) as caught:
        config_of(*words)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [*PRESETS])
def test_what_is_saved_is_read_again(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(written_text(PRESETS[name].to_dict()))
    assert config_of("--config", str(tmp_path / "c.yaml")) == PRESETS[name]
    (tmp_path / "c.json").write_text(json.dumps(PRESETS[name].to_dict()))
    assert config_of("--config", str(tmp_path / "c.json")) == PRESETS[name]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("-2E3", -2000.0), ("1.5e+2", 150.0), ("3", 3), ("true", True), ("[1, 2]", [1, 2]),
     ("Conv", "Conv"), ("{a: [1, 2]}", {"a": [1, 2]}), ("null", None), ("[1", "[1"), ("1e", "1e")],
)  # fmt: skip
def test_values(text: str, value: Any) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


@pytest.mark.parametrize("content", ["a: [1", "\x00", "- 1\n- 2\n", "just words", ""])
def test_a_file_that_is_no_configuration(content: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"c.yaml' (is not YAML|holds no configuration)"):
        config_of("--config", str(tmp_path / "c.yaml"))


def test_a_file_with_a_wrong_key(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("global_conf: {}\n")
    with pytest.raises(ConfigError, match="unknown key 'global_conf'; did you mean 'global_config'"):
        config_of("--config", str(tmp_path / "c.yaml"))
    assert read_file(tmp_path / "c.yaml") == {"global_conf": {}}


def test_kinds_of_all_fields_are_known() -> None:
    """A field of a new kind shows up here."""
    for path, cls in CLASSES.items():
        for name, hint in get_type_hints(cls, include_extras=True).items():
            if get_origin(hint) is Annotated and name != "data_type":
                (option,) = options_by_path()[(*path, name)]
                assert option.is_flag or option.type.name not in ("", None), (name, get_args(hint)[0])
