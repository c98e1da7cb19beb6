"""Options that say where data is, and what becomes of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from quark.onnx.calibration_data.any_data import Data, data_reader
from quark.onnx.calibration_data.images import PREPROCESSINGS, ImagePreprocessing
from quark.onnx.cli.config_options import FUNCTION, ParamType, edits_of, field_options
from quark.onnx.cli.configuration import imported
from quark.onnx.errors import ConfigError
from quark.onnx.model_files.model_file import load_model

__all__ = ["data_options", "given_data"]


class _Preprocessing(ParamType):
    """The name of a preprocessing, or a function."""

    name = "|".join((*PREPROCESSINGS, "MODULE:FUNCTION"))

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002
        return f"[{self.name}]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value not in PREPROCESSINGS and not FUNCTION.fullmatch(value):
            self.fail(f"got {value!r}, expected {', '.join(PREPROCESSINGS)}, or MODULE:FUNCTION", param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG002
        return [CompletionItem(name) for name in PREPROCESSINGS if name.startswith(incomplete)]


def data_options() -> Iterator[click.Option]:
    """--data, --preprocess, and an option for each field of `ImagePreprocessing`."""
    yield click.Option(
        ["--data"],
        type=click.Path(),
        metavar="PATH|MODULE:READER",
        help="Calibration data: a folder of images or .npy files, one for each sample; a .npz or .npy file, samples "
        "along the first axis; or a reader, as my_module:MyReader.",
    )
    yield click.Option(
        ["--preprocess"],
        type=_Preprocessing(),
        help="What becomes of the images of a folder; see the options for images.",
    )
    yield from field_options(ImagePreprocessing, ("image",), "Images")


def given_data(ctx: click.Context, path: Path) -> Data | None:
    """The data that a call names for the model at a path; None where it names none.

    Raises:
        click.UsageError: options do not fit each other.
        QuarkError, OSError: the data does not fit the model, or is not there.
    """
    where, how = ctx.params["data"], _preprocessing(ctx)
    if where is None:
        if how is not None:
            raise click.UsageError("options for images need --data FOLDER", ctx)
        return None
    model = load_model(path, role="float model")
    if FUNCTION.fullmatch(where) and not Path(where).exists():
        if how is not None:
            raise click.UsageError("options for images are for a folder, not for a reader", ctx)
        found = imported(where)
        is_made_by_a_call = isinstance(found, type) or (callable(found) and not hasattr(found, "get_next"))
        return data_reader(found() if is_made_by_a_call else found, model)
    preprocess = how.for_model(model) if isinstance(how, ImagePreprocessing) else how
    return data_reader(where, model, preprocess=preprocess)


def _preprocessing(ctx: click.Context) -> Any:
    """An `ImagePreprocessing`, a function from a path to an array, or None."""
    name, fields = ctx.params["preprocess"], {path[0]: value for path, value in edits_of(ctx, "image")}
    if name is None:
        return ImagePreprocessing(**fields) if fields else None
    if name in PREPROCESSINGS:
        return replace(PREPROCESSINGS[name], **fields)
    if fields:
        raise click.UsageError(
            f"--{next(iter(fields))} is for --preprocess {'|'.join(PREPROCESSINGS)}, not for a function", ctx
        )
    function = imported(name)
    if not callable(function):
        raise ConfigError(f"--preprocess {name}: it is a {type(function).__name__}, not a function")
    return function
