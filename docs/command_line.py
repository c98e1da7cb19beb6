"""Makes docs/command-line.md of the program's commands and options: python docs/command_line.py."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from quark.onnx.cli.command import section_of
from quark.onnx.cli.config_options import ConfigOption
from quark.onnx.cli.main import program

PAGE = Path(__file__).with_name("command-line.md")

INTRODUCTION = """\
# The command line

This page answers: which commands and options does `quark-onnx` have?

`python docs/command_line.py` makes this page of the program; so does a test. The options that stand for fields of the
configuration, and what is said of them, come from the configuration classes ([why](decisions/0025-command-line.md)).

```sh
quark-onnx inspect model.onnx   # what would be done
quark-onnx quantize model.onnx int8.onnx --data photos/ --preprocess imagenet   # quantize and finetune
quark-onnx compare model.onnx int8.onnx --data photos/ --preprocess imagenet   # how near it is
quark-onnx quantize model.onnx int8.onnx --data photos/ --preprocess imagenet --report run.html
quark-onnx finetune model.onnx other_tools_int8.onnx tuned.onnx --data samples.npz
```

`python -m quark.onnx` is the same program.

**Data** is a folder of images (with `--preprocess`, or the options for images) or of `.npy` files, one for each
sample; a `.npz` file with an array for each input, or a `.npy` file, whose first axis counts samples; or
`module:name`, a reader class, a function that yields samples, or an object, in a module of the current folder or an
installed one.

| `--preprocess` | shape | pixels |
|---|---|---|
| `imagenet` | the middle 87.5 % | RGB, 0 to 1, minus the mean (0.485, 0.456, 0.406), divided by (0.229, 0.224, 0.225) |
| `yolo` | all of the image, grey beside it | RGB, 0 to 1 |
| `caffe` | the middle 87.5 % | BGR, 0 to 255, minus the mean (103.939, 116.779, 123.68) |
| `none` | all of the image, stretched | RGB, 0 to 255 |

Size, layout and number of channels are the model's. Each single option beside `--preprocess` changes it:
`--preprocess none --scale 1/255 --mean 0.5 --std 0.5` gives -1 to 1. Images need Pillow: `pip install
'quark-onnx[images]'`.

**The configuration** is `--preset`, `--config`, or UInt8 activations, Int8 weights and AdaRound; every option beside
it changes one field. `--set` reaches all fields, `--save-config` keeps the whole for `--config` and for
`QConfig.from_dict` in Python.

**Output**: results go to standard output, as JSON with `--json`; progress, warnings and errors to standard error,
each warning once. In a terminal progress is a bar; elsewhere a line when a phase ends, and every few seconds. No
colour and no control characters outside of a terminal; `NO_COLOR` switches them off there too.

**Exit codes**: 0; 1 after an error, which is one line (`--debug` shows where it comes from); 2 where the command is
not understood; 130 after Ctrl-C, 143 after SIGTERM, which leave no file behind.

**Completion**: `eval "$(quark-onnx completion bash)"`; zsh and fish too.
"""


def page() -> str:
    """The text of the page."""
    parts = [INTRODUCTION]
    group = program()
    context = click.Context(group, info_name="quark-onnx")
    for name, command in group.commands.items():
        parts.append("\n".join(_command(command, click.Context(command, context, name), group.commands["quantize"])))
    return "\n".join(parts)


def _command(command: click.Command, context: click.Context, first: click.Command) -> Iterator[str]:
    yield f"## {command.name}\n"
    yield f"    quark-onnx {command.name} [OPTIONS] {' '.join(command.collect_usage_pieces(context)[1:])}\n"
    yield f"{_paragraphs(command.help or '')}\n"
    known = _sections(first, context) if command is not first else {}
    for title, options in _sections(command, context).items():
        if [option.opts for option in options] == [option.opts for option in known.get(title, ())]:
            yield f"{title}: as those of [quantize](#quantize).\n"
            continue
        yield f"### {title}\n\n| option | meaning |\n|---|---|"
        for option in options:
            names, text = option.get_help_record(context) or ("", "")
            full = option.full_help if isinstance(option, ConfigOption) else text
            yield f"| {_code(names)} | {_cell(full)} |"
        yield ""


def _sections(command: click.Command, context: click.Context) -> dict[str, list[click.Option]]:
    found: dict[str, list[click.Option]] = {}
    for param in command.get_params(context):
        if isinstance(param, click.Option) and "--help" not in param.opts:  # its place depends on click's version
            found.setdefault(section_of(param), []).append(param)
    return found


def _paragraphs(text: str) -> str:
    """Help as Markdown: what click must not wrap, which begins with a backspace, is a block of code."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(
        textwrap.indent(textwrap.dedent(one.removeprefix("\b\n")), "    ") if one.startswith("\b") else one
        for one in paragraphs
    )


def _code(names: str) -> str:
    return f"`{_cell(names)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
