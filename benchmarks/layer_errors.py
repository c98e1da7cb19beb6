"""Reconstruction errors of layers, ours and amd-quark's on one measure: the mean square over all samples, output
channels and positions of the layer's output before its activation, against the float model's.

Both sides name a layer by the tensor that it computes, and list layers in graph order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from model_checks import CheckError
from peers.amd_quark_log import ERROR_STEP

LayerErrors = Mapping[str, Sequence[float]]  # [before, after]

_SAME = 0.002  # how far the two numbers of one error may be apart; so far they were equal in all printed digits


def mean_square(errors: tuple[float, float], rows: tuple[int, int], outputs: int) -> float:
    """Errors as LayerReport has them (of fitted and of held-out rows, summed over outputs) as one mean square.

    rows: how many rows of each kind. NaN without rows.
    """
    total = sum(error * count for error, count in zip(errors, rows, strict=True) if count)
    return total / (sum(rows) * outputs) if sum(rows) else math.nan


def check_same_measure(ours: LayerErrors, peer: LayerErrors) -> None:
    """Both sides tune the same layers, and their numbers mean the same.

    The first layer sees the same data on both sides and has the same integers before finetuning: its error before,
    which each side works out for itself, is one number. Later layers see what each side made of the earlier ones.

    Raises:
        CheckError: that is not so.
    """
    if different := ours.keys() ^ peer.keys():
        raise CheckError(f"layers that only one side tuned: {sorted(different)}")
    first, other = next(iter(ours)), next(iter(peer))
    if first != other:
        raise CheckError(f"the first layer is {first!r} for us and {other!r} for amd-quark")
    own, theirs = ours[first][0], peer[first][0]
    if not abs(own - theirs) <= _SAME * theirs + ERROR_STEP / 2:
        raise CheckError(f"{first!r}: before finetuning the error is {own:.7f} for us and {theirs:.6f} for amd-quark")


def share_at_most_peers(ours: LayerErrors, peer: LayerErrors) -> float:
    """Share (0-1) of the layers whose error after finetuning is at most amd-quark's, as far as its log shows it."""
    return sum(ours[layer][1] <= peer[layer][1] + ERROR_STEP / 2 for layer in peer) / len(peer)
