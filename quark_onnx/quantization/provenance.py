"""A model says how it was made: by which version, with which configuration."""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any, Literal

import onnx

from quark.onnx.config.described import WAYS
from quark.onnx.config.frozen import FrozenConfig
from quark.onnx.report.written_configuration import written_configuration

__all__ = ["say_how_it_was_made"]

_NAME = "quark-onnx"


def say_how_it_was_made(model: onnx.ModelProto, done: Literal["quantized", "finetuned"], config: FrozenConfig) -> None:
    """Write version and configuration into a model's metadata. It becomes the producer of what it quantized; what it
    only finetuned keeps the name of the tool that made it.

    Options that the integers do not depend on (threads, memory) are left out: the same work gives the same file.
    """
    if done == "quantized":
        model.producer_name, model.producer_version = _NAME, version(_NAME)
    configuration = json.dumps(_without_ways(written_configuration(config)), sort_keys=True, default=str)
    entries = {"quark_onnx.version": version(_NAME), f"quark_onnx.{done}_with": configuration}
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, kept | entries)


def _without_ways(plain: Any) -> Any:
    """Without these options, and without what held nothing else."""
    if isinstance(plain, dict):
        kept = {key: (value, _without_ways(value)) for key, value in plain.items() if key not in WAYS}
        return {key: after for key, (before, after) in kept.items() if after or not before}
    return [_without_ways(value) for value in plain] if isinstance(plain, list) else plain
