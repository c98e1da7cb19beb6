"""`quark-onnx completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from quark.onnx.cli.command import new_command

__all__ = ["completion_command"]

_SHELLS = ("bash", "zsh", "fish")


def completion(ctx: click.Context) -> None:
    """Print the script that makes a shell complete commands.

    Commands, options and their values, of SHELL.

    \b
      eval "$(quark-onnx completion bash)"                 # in ~/.bashrc
      eval "$(quark-onnx completion zsh)"                  # in ~/.zshrc
      quark-onnx completion fish | source                  # in ~/.config/fish/config.fish
    """
    shell = get_completion_class(ctx.params["shell"])
    assert shell is not None
    root = ctx.find_root()
    click.echo(shell(root.command, {}, "quark-onnx", "_QUARK_ONNX_COMPLETE").source())


def completion_command() -> click.Command:
    """The command."""
    return new_command("completion", completion, [click.Argument(["shell"], type=click.Choice(_SHELLS))])
