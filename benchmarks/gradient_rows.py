"""The rows of the comparison of the published loops, AdaRound and AdaQuant, and their floors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fresh_process import noisy
from layer_errors import share_at_most_peers
from peers.results import PeerJob
from rows import Verdict

Figures = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class GradientRow:
    """One finetuning of amd-quark's plain model by both sides, and its floors; None: no floor.

    learning_rate: None for the default, which is the same on both sides.
    loop_of_peer, mse_of_peer: ratios, ours to theirs.
    agree_of_peer: the agreement has to be at least amd-quark's.
    layers_of_peer: share of the layers whose error has to be at most amd-quark's.
    """

    case: str
    samples: int
    algorithm: str = "adaround"
    batch_size: int = 1
    iterations: int = 1000
    learning_rate: float | None = None
    loop_of_peer: float
    mse: float | None = None
    mse_of_peer: float | None = None
    agree_of_peer: bool = False
    layers_of_peer: float | None = None
    finetune_peers_model: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """case-samples-algorithm, and the size of the batch if it is not 1."""
        batch = "" if self.batch_size == 1 else f"-batch{self.batch_size}"
        return f"{self.case}-{self.samples}-{self.algorithm}{batch}"

    @property
    def peer_job(self) -> PeerJob:
        """amd-quark runs this job."""
        return PeerJob(
            case=self.case,
            samples=self.samples,
            algorithm=self.algorithm,
            batch_size=self.batch_size,
            iterations=self.iterations,
            learning_rate=self.learning_rate,
        )

    def with_samples(self, samples: int) -> GradientRow:
        """The row with another number of samples, without the floors that hold for a number."""
        return replace(self, samples=samples, mse=None, mse_of_peer=None, agree_of_peer=False)


GRADIENT_ROWS = (
    GradientRow(case="resnet20", samples=256, loop_of_peer=1 / 15, mse_of_peer=1.0, layers_of_peer=0.9),
    GradientRow(case="resnet20", samples=256, batch_size=32, loop_of_peer=1 / 10, mse_of_peer=1.0),
    GradientRow(case="mobilenet_v1", samples=100, loop_of_peer=1 / 10, mse=4.6, agree_of_peer=True, layers_of_peer=0.9),
    GradientRow(
        case="mobilenet_v1",
        samples=100,
        algorithm="adaquant",
        learning_rate=1e-3,
        loop_of_peer=1 / 10,
        agree_of_peer=True,
    ),
)


def judge_gradient(row: GradientRow, ours: Figures, peer: Figures) -> list[Verdict]:
    """All floors of a row."""
    loop = ours["loop_s"] / peer["loop_s"]
    verdicts = [Verdict("loop, ratio", loop, row.loop_of_peer, noisy=noisy(ours) or noisy(peer))]
    mse, agree = ours["plain"]["mse"], ours["plain"]["agree"]
    if row.mse is not None:
        verdicts.append(Verdict("logit mse", mse, row.mse))
    if row.mse_of_peer is not None:
        verdicts.append(Verdict("logit mse, ratio", mse / peer["plain"]["mse"], row.mse_of_peer))
    if row.agree_of_peer:
        verdicts.append(Verdict("agreement %, amd-quark's", agree, peer["plain"]["agree"], at_least=True))
    if row.layers_of_peer is not None:
        share = share_at_most_peers(ours["layer_errors"], peer["layer_errors"])
        verdicts.append(Verdict("layers with at most amd-quark's error", share, row.layers_of_peer, at_least=True))
    return verdicts
