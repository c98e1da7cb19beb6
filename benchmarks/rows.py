"""The rows of the comparison with amd-quark and the floor that each of them has to reach."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fresh_process import noisy
from peers.results import PeerJob

Figures = Mapping[str, Any]

# How far onnxruntime's default optimisation may move agreement and logit mse: our reading of "by rounding".
_ROUNDING_AGREE = 1.5  # points; at 500 images one image is 0.2
_ROUNDING_MSE = 1.1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job of both sides and its floors; None: no floor. Those "of_peer" are ratios, ours to theirs."""

    case: str
    samples: int
    weight_method: str = "default"
    finetune_peers_model: bool = False
    mse: float | None = None
    mse_of_peer: float | None = None
    agree: float | None = None
    wall_of_peer: float | None = None
    memory_of_peer: float | None = None
    bound_multiple: float = 3.0

    @property
    def name(self) -> str:
        """case-samples, and what is special about the row."""
        special = (
            "-finetune"
            if self.finetune_peers_model
            else ""
            if self.weight_method == "default"
            else "-" + self.weight_method
        )
        return f"{self.case}-{self.samples}{special.lower()}"

    @property
    def peer_job(self) -> PeerJob:
        """amd-quark runs this job."""
        return PeerJob(case=self.case, samples=self.samples)

    def with_samples(self, samples: int) -> Row:
        """The row with another number of samples, without the floors that hold for a number."""
        return replace(self, samples=samples, mse=None, mse_of_peer=None, agree=None)


ROWS = (
    Row(case="mobilenet_v1", samples=100, mse=0.26, agree=82, wall_of_peer=1 / 20, memory_of_peer=1 / 3),
    Row(case="mobilenet_v1", samples=256, mse=0.23, agree=85),
    Row(case="mobilenet_v1", samples=100, weight_method="MinMax", mse=1.25, agree=66),
    Row(case="mobilenet_v1", samples=100, finetune_peers_model=True, mse=1.25, agree=66),
    Row(case="resnet20", samples=256, mse_of_peer=1.02, agree=99, wall_of_peer=1 / 25, memory_of_peer=1 / 2),
    Row(case="kws", samples=256, mse_of_peer=1.0, agree=98.5, wall_of_peer=1 / 25),
)


@dataclass(frozen=True)
class Verdict:
    """One floor of one row: what was measured, the limit, whether it holds, whether its timing is noisy."""

    what: str
    value: float
    limit: float
    at_least: bool = False
    noisy: bool = False

    @property
    def holds(self) -> bool:
        return math.isfinite(self.value) and (self.value >= self.limit if self.at_least else self.value <= self.limit)


def own_memory(figures: Figures) -> float:
    """MiB: peak of the process during the call, less the case's arrays, which the benchmark holds in it."""
    return float(figures["call_peak_mib"] - figures["case_data_mib"])


def judge(row: Row, ours: Figures, peer: Figures, bound: Figures) -> list[Verdict]:
    """All floors of a row."""
    plain, default = ours["plain"], ours["ort_default"]
    at_most = (
        ("logit mse", plain["mse"], row.mse),
        ("logit mse, ratio", plain["mse"] / peer["plain"]["mse"], row.mse_of_peer),
        ("memory, ratio", own_memory(ours) / own_memory(peer), row.memory_of_peer),
        ("default optimisation: logit mse, ratio", default["mse"] / plain["mse"], _ROUNDING_MSE),
        ("default optimisation: agreement lost", plain["agree"] - default["agree"], _ROUNDING_AGREE),
    )
    verdicts = [Verdict(what, value, limit) for what, value, limit in at_most if limit is not None]
    timed = (
        ("wall, ratio", peer, "wall_s", row.wall_of_peer),
        ("wall, multiple of the bound", bound, "bound_s", row.bound_multiple),
    )
    for what, other, key, limit in timed:
        if limit is not None:
            ratio = ours["wall_s"] / other[key]
            verdicts.append(Verdict(what, ratio, limit, noisy=noisy(ours) or noisy(other)))
    if row.agree is not None:
        verdicts.append(Verdict("agreement %", plain["agree"], row.agree, at_least=True))
    return verdicts
