"""AMD Quark's names for the keywords of AdaRound and AdaQuant in `extra_options["FastFinetune"]`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from quark.onnx.errors import ConfigError

from .algorithm import FastFinetuneConfig
from .validate import nearest, problem

__all__ = ["with_options", "written_options"]

_WHERE = "QConfig.extra_options['FastFinetune']"
_IRREGULAR = {"lr_adjust": "LRAdjust", "output_qdq": "OutputQDQ", "use_gds": "UseGDS"}
_KEYWORDS = {
    _IRREGULAR.get(field.name, "".join(part.capitalize() for part in field.name.split("_"))): field.name
    for field in fields(FastFinetuneConfig)
}


def written_options(algorithm: FastFinetuneConfig) -> dict[str, Any]:
    """What differs from the defaults of the algorithm, under AMD Quark's names."""
    names = {field: keyword for keyword, field in _KEYWORDS.items()}
    options = {names[field]: value for field, value in algorithm.changed().items()}
    return {"OptimAlgorithm": algorithm.name, **options}


def with_options(algorithm: FastFinetuneConfig | None, options: Mapping[str, Any]) -> FastFinetuneConfig:
    """The algorithm with the options in place of its own values.

    Raises:
        ConfigError: there is no algorithm, or the options name another; an unknown option; a wrong value.
    """
    if algorithm is None:
        raise ConfigError(problem(_WHERE, dict(options), "AdaRoundConfig or AdaQuantConfig in algo_config too"))
    kind = type(algorithm)
    named = options.get("OptimAlgorithm", kind.name)
    if named != kind.name:
        raise ConfigError(problem(f"{_WHERE}['OptimAlgorithm']", named, f"{kind.name!r}, which algo_config lists"))
    given = {name: value for name, value in options.items() if name != "OptimAlgorithm"}
    for name in given:
        if name not in _KEYWORDS:
            raise ConfigError(f"{_WHERE}: got the unknown option {name!r}; {nearest(name, _KEYWORDS)}")
    return replace(algorithm, **{_KEYWORDS[name]: value for name, value in given.items()})
