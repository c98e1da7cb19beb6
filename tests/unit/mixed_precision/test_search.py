"""The search along a path, with a model of which the error is known."""

from __future__ import annotations

import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from quark.onnx import (
    ConfigError,
    ConfigTypeError,
    Int4Spec,
    Int8Spec,
    Int16Spec,
    QuantGranularity,
    Report,
    ScaleType,
    Target,
    UInt8Spec,
    XInt8Spec,
)
from quark.onnx.mixed_precision.allocation import Choice, Option, Path
from quark.onnx.mixed_precision.formats import Formats
from quark.onnx.mixed_precision.search import Search
from quark.onnx.mixed_precision.target_judge import Judged

SPECS = (Int4Spec(), Int8Spec(), Int16Spec())


def path(count: int = 12) -> Path:
    """Weights of 100 elements, of which the first make most error."""
    choices = list[Choice]()
    for at in range(count):
        options = [Option(s, 100 * s.data_type.bits, 0.5**at * 4.0 ** (4 - s.data_type.bits)) for s in SPECS]
        choices.append(Choice((f"w{at}",), True, 100, tuple(options)))
    return Path(choices)


class KnownJudge:
    """Measures what the path predicts, times a factor that the search does not know."""

    samples = 8

    def __init__(self, target: Target, known: Path, factor: float) -> None:
        self.wanted, self._path, self._factor = target.wanted, known, factor
        self._is_size = target.goal == "max_bytes"

    def judged(self, model: onnx.ModelProto, size: int) -> Judged:
        error = self._factor * self._path.error(int(model.producer_version))
        measured = float(size) if self._is_size else error
        return Judged(measured, measured - self.wanted, error)


def searched(target: Target, known: Path, factor: float = 3.0, began: float | None = None):
    def quantize(formats: Formats) -> tuple[onnx.ModelProto, Report]:
        at = next(c for c in range(len(known) + 1) if [o.spec for o in known.at(c)] == list(formats.weights.values()))
        size = int(known.bits(at)) // 8 + 20  # of something else
        data = helper.make_tensor("w", TensorProto.INT8, [size], bytes(size), raw=True)
        graph = helper.make_graph([], "g", [], [], [data])
        return helper.make_model(graph, producer_version=str(at)), Report(None, 8)

    kept = list[int]()
    search = Search(
        known, quantize, KnownJudge(target, known, factor), target, 0,
        lambda model: kept.append(int(model.producer_version)), time.monotonic() if began is None else began,
    )  # fmt: skip
    return search.run(), search.report(held_out=True), kept


@pytest.mark.parametrize("wanted", [3.0, 1.0, 0.1, 0.01])
def test_the_fewest_bits_are_found(wanted: float) -> None:
    known = path()
    found, said, kept = searched(Target(mse=wanted), known)
    fewest = min(known.bits(count) for count in range(len(known) + 1) if 3 * known.error(count) <= wanted)
    assert said.reached
    assert known.bits(found.at) <= 1.011 * fewest
    assert kept[-1] == found.at
    assert len(said.tries) <= 12
    assert said.best.measured <= wanted
    assert sum(said.weights.values()) == 12


def test_what_is_reached_at_once_takes_one_try() -> None:
    found, said, _ = searched(Target(mse=100.0), path())
    assert (found.at, len(said.tries), said.best.weight_bits) == (0, 1, 4)


def test_what_cannot_be_reached_gives_the_nearest_and_says_so() -> None:
    known = path()
    found, said, _ = searched(Target(mse=1e-12), known)
    assert not said.reached
    assert found.at == len(known)
    assert "NOT reached: the nearest is" in str(said)


def test_a_limit_of_time_keeps_the_best_so_far() -> None:
    found, said, kept = searched(Target(mse=0.01, time_limit=1.0), path(), began=time.monotonic() - 10)
    assert (found.at, len(said.tries), kept) == (0, 1, [0])
    assert not said.reached


@pytest.mark.parametrize("size", [700, 1000, 1700])
def test_a_budget_takes_the_least_error_that_fits(size: int) -> None:
    known = path()
    found, said, _ = searched(Target(max_bytes=size), known)
    assert said.reached
    assert said.best.bytes <= size
    assert known.bits(found.at + 1) / 8 + 20 > size


def test_targets_that_are_none() -> None:
    for wrong in ({}, {"mse": 1.0, "sqnr_db": 3.0}, {"min_score": 1.0}, {"mse": 0.1, "evaluator": len}):
        with pytest.raises(ConfigError):
            Target(**wrong)
    for wrong in ({"max_distance": 1.0}, {"mse": 1.0, "distance": max}, {"mse": -1.0}, {"max_drop": -0.1}):
        with pytest.raises(ConfigError):
            Target(**wrong)
    with pytest.raises(ConfigTypeError, match="did you mean 'max_drop'"):
        Target(max_drops=0.1)
    with pytest.raises(ConfigTypeError):
        Target(mse=0.1, weights=[None])


def test_formats_that_follow_from_the_configuration() -> None:
    found = Target(mse=0.1).with_candidates(Int8Spec(), UInt8Spec())
    channel = QuantGranularity.Channel
    eight, sixteen = Int8Spec(quant_granularity=channel), Int16Spec(quant_granularity=channel)
    assert found.weights == (Int8Spec(), eight, sixteen)
    assert [spec and repr(spec.data_type) for spec in found.activations] == ["UInt8", "UInt16", None]
    assert found.activations[1].symmetric == UInt8Spec().symmetric
    found = Target(max_bytes=10).with_candidates(Int8Spec(), UInt8Spec())
    assert found.weights == (Int4Spec(quant_granularity=channel), Int8Spec(), eight, sixteen)
    assert Target(max_bytes=10).with_candidates(eight, UInt8Spec()).weights[1:] == (eight, sixteen)
    assert found.activations == (UInt8Spec(),)
    found = Target(mse=0.1).with_candidates(XInt8Spec(), XInt8Spec())
    assert found.activations == (XInt8Spec(), Int16Spec(scale_type=ScaleType.PowerOf2))
    assert "validation" in repr(Target(mse=0.1, validation=np.zeros((2, 2))))
