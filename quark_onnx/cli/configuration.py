"""The configuration of a call: a preset, a file or the usual one, and what the options change of it."""

from __future__ import annotations

import collections.abc
import importlib
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click
from click.shell_completion import CompletionItem

from quark.onnx.cli.config_options import FUNCTION, ConfigOption, Edit, ParamType, edits_of, field_options, kebab
from quark.onnx.cli.plain_values import read_file, read_value, written_text
from quark.onnx.config.algorithm import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CLEConfig,
)
from quark.onnx.config.amd_quark.presets import PRESETS, get_default_config
from quark.onnx.config.extra_options import ExtraOptions
from quark.onnx.config.qconfig import QConfig
from quark.onnx.config.spec import QTensorConfig
from quark.onnx.errors import ConfigError
from quark.onnx.quantization.quantize import USUAL_CONFIG

__all__ = ["algorithm_options", "configuration", "imported", "model_options", "save_config", "source_options"]

Written = dict[str, Any]  # a configuration as QConfig.to_dict writes it
_FINETUNING = ("adaround", "adaquant")
_SPECS = [name.removesuffix("Spec") for name in QTensorConfig._kinds() if name.endswith("Spec")]


class _Preset(ParamType):
    """The name of a ready configuration."""

    name = "NAME"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            get_default_config(value)
        except ConfigError as error:
            self.fail(str(error).removeprefix("get_default_config(): "), param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        return [CompletionItem(name) for name in PRESETS if name.startswith(incomplete.upper())]


def source_options(*, saves: bool = True) -> list[click.Option]:
    """Where the configuration comes from and, if the command saves it, where it goes."""
    file = click.Path(dir_okay=False, path_type=Path)
    kept = click.Option(["--save-config"], type=file, help="Write the whole configuration to this file.")
    return [
        click.Option(["--preset"], type=_Preset(), help="Start from a ready configuration, as XINT8_ADAROUND."),
        click.Option(["--config"], type=file, help="Start from a file of YAML or JSON, as --save-config writes it."),
        click.Option(
            ["--set", "settings"],
            multiple=True,
            metavar="FIELD=VALUE",
            help="Set any field of the configuration, as --set extra_options.NumThreads=4. May be repeated.",
        ),
        *([kept] if saves else []),
    ]  # fmt: skip


def model_options() -> Iterator[ConfigOption]:
    """How tensors are quantized, and which."""
    for role, section in (("activation", "Activations"), ("weight", "Weights")):
        text = f"The format of {role}s: {', '.join(_SPECS)}."
        kind = click.Choice(_SPECS, case_sensitive=False)
        path = ("global_config", role)
        yield ConfigOption([f"--{role}"], (*path, "name"), section, text, "", type=kind, metavar="FORMAT")
        yield from field_options(QTensorConfig, path, section, prefix=f"{role}_", leave_out={"data_type"})
    yield from field_options(
        QConfig,
        (),
        "Which nodes, and how the model is saved",
        leave_out={"global_config", "specific_layer_config", "layer_type_config", "algo_config", "extra_options"},
    )
    path = ("algo_config", CLEConfig.name)
    section = "Cross-layer equalisation"
    yield _switch("--cle", path, section, "Equalise the weights of layers that follow each other, before quantization.")
    yield from field_options(CLEConfig, path, section, prefix="cle_")


def algorithm_options(*, default: str) -> Iterator[ConfigOption]:
    """What is done after quantization, and extra options.

    Args:
        default: which algorithm there is without an option.
    """
    finetuning, section = ("algo_config", "finetuning"), "AdaRound and AdaQuant"
    kinds = {"adaround": AdaRoundConfig, "adaquant": AdaQuantConfig}
    for name, kind in kinds.items():
        text = (kind.__doc__ or "").partition(" Keywords:")[0] + (f" {default}" if name == "adaround" else "")
        yield ConfigOption([f"--{name}"], (*finetuning, "name"), section, text, "", is_flag=True, flag_value=name)
    text = "Neither of the two."
    yield ConfigOption(["--no-finetuning"], (*finetuning, "name"), section, text, "", is_flag=True, flag_value="")
    yield from field_options(AdaRoundConfig, finetuning, section, variants={"AdaQuant": AdaQuantConfig})
    path, section = ("algo_config", BiasCorrectionConfig.name), "Bias correction"
    yield _switch(
        "--bias-correction", path, section, "Correct biases after quantization, before AdaRound and AdaQuant."
    )
    yield from field_options(BiasCorrectionConfig, path, section, prefix="bias_correction_")
    yield from field_options(ExtraOptions, ("extra_options",), "Extra options")


def _switch(name: str, path: tuple[str, ...], section: str, text: str) -> ConfigOption:
    return ConfigOption([name], (*path, "name"), section, text, "", is_flag=True, flag_value=path[-1])


def configuration(ctx: click.Context) -> tuple[QConfig, Written]:
    """The configuration that a call's options make, and as it is written.

    Raises:
        click.UsageError: options exclude each other, or one needs another.
        ConfigError: it is not one; OSError: the file cannot be read.
    """
    preset, file, settings = (ctx.params.get(name) for name in ("preset", "config", "settings"))
    if preset and file:
        raise click.UsageError("--preset and --config exclude each other", ctx)
    start: Any = read_file(file) if file else (get_default_config(preset) if preset else USUAL_CONFIG).to_dict()
    if not isinstance(start, dict):
        raise ConfigError(f"{str(file)!r} holds no configuration: it begins with global_config:")
    written = _edited(start, [*_checked(edits_of(ctx), ctx), *map(_setting, settings or ())], ctx)
    return QConfig.from_dict(_looked_up(written)), written


def save_config(written: Written, path: Path) -> None:
    """Write a configuration for --config, and for `QConfig.from_dict`."""
    path.write_text(written_text(written), encoding="utf-8")


def _checked(edits: list[Edit], ctx: click.Context) -> list[Edit]:
    """The options' edits, of which none contradicts another."""
    edits = [edit for edit in edits if edit[0][0] != "image"]
    if [path for path, _ in edits].count(("algo_config", "finetuning", "name")) > 1:
        raise click.UsageError("--adaround, --adaquant and --no-finetuning exclude each other", ctx)
    return sorted(edits, key=lambda edit: edit[0][-1] != "name")  # what a field belongs to is there before it


def _setting(text: str) -> Edit:
    place, sign, value = text.partition("=")
    path = tuple(place.split("."))
    if not sign or not all(path):
        raise click.BadParameter(
            f"got {text!r}, expected FIELD=VALUE, as extra_options.NumThreads=4", param_hint="--set"
        )
    if path[0] == "algo_config" and path[1:2] and path[1] in _FINETUNING:
        path = ("algo_config", "finetuning", *path[2:])
    return path, read_value(value)


def _edited(start: Written, edits: Iterable[Edit], ctx: click.Context) -> Written:
    """A written configuration with the edits."""
    written = deepcopy(start)
    listed = written.get("algo_config") or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ConfigError("algo_config: expected a list of algorithms, each with a name")
    algorithms: dict[str, Written] = {
        "finetuning" if entry.get("name") in _FINETUNING else str(entry.get("name")): entry for entry in listed
    }
    for path, value in edits:
        if path[:1] == ("algo_config",) and len(path) > 2:
            _set_algorithm(algorithms, path[1], path[2:], value, ctx)
        elif path == ("algo_config",):
            algorithms = {str(entry.get("name")): entry for entry in value}
        else:
            _set(written, _as_written(written, path), value)
    written["algo_config"] = list(algorithms.values())
    return written if algorithms else {key: value for key, value in written.items() if key != "algo_config"}


def _set_algorithm(
    algorithms: dict[str, Written], key: str, field: tuple[str, ...], value: Any, ctx: click.Context
) -> None:
    if field == ("name",):
        if not value:
            algorithms.pop(key, None)
        elif algorithms.get(key, {}).get("name") != value:
            algorithms[key] = {"name": value}
        return
    if key not in algorithms:
        if key == "finetuning":
            raise click.UsageError(f"--{kebab(field[0])} needs --adaround or --adaquant", ctx)
        algorithms[key] = {"name": key}
    _set(algorithms[key], field, value)


def _as_written(written: Written, path: tuple[str, ...]) -> tuple[str, ...]:
    """The path with the name that the configuration gives to the spec of its activations."""
    if path[:2] == ("global_config", "activation") and "input_tensors" in written.get("global_config", {}):
        return ("global_config", "input_tensors", *path[2:])
    return path


def _set(place: Written, path: tuple[str, ...], value: Any) -> None:
    *inner, last = path
    for key in inner:
        below = place.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{'.'.join(path)}: {key!r} has no fields")
        place = below
    place[last] = f"{value}Spec" if last == "name" and value in _SPECS else value


def _looked_up(written: Written) -> Written:
    """A written configuration with the functions that it names as MODULE:FUNCTION."""
    found = deepcopy(written)
    kinds = {kind.name: kind for kind in AlgoConfig._kinds().values()}
    for entry in found.get("algo_config", []):
        for field in _function_fields(kinds.get(entry.get("name"), AlgoConfig)):
            if isinstance(entry.get(field), str) and FUNCTION.fullmatch(entry[field]):
                entry[field] = imported(entry[field])
    return found


def _function_fields(cls: type) -> Iterator[str]:
    for name, hint in get_type_hints(cls).items():
        if any(get_origin(kind) is collections.abc.Callable for kind in (hint, *get_args(hint))):
            yield name


def imported(text: str) -> Any:
    """What MODULE:NAME names; modules of the current folder count.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = text.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ConfigError(f"{text}: there is no module {module!r} in {folder!r} or among the installed ones") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{text}: the module {module!r} has no {name!r}")
        found = getattr(found, part)
    return found
