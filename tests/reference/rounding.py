"""Solvers for one row of integer weights w = scale (q - zero_point), lo <= q <= hi, one weight at a time.

scale and zero_point are those of every weight, or one for all. The first two minimise (w - target) G (w - target)'
greedily, in the two forms that the literature gives; the third goes on until it is sure, or tired.
"""

from __future__ import annotations

import numpy as np

Numbers = np.ndarray | float


def nearest_plane(
    target: np.ndarray, gram: np.ndarray, scale: Numbers, zero_point: Numbers, lo: np.ndarray, hi: np.ndarray
) -> np.ndarray:
    """Babai's nearest plane: from the last column to the first, each is best for those behind it."""
    scale, zero_point = np.broadcast_to(scale, len(target)), np.broadcast_to(zero_point, len(target))
    lower = np.linalg.cholesky(gram)  # the objective is |lower' d|^2
    d, q = np.zeros(len(target)), np.zeros(len(target), np.int32)
    for j in reversed(range(len(target))):
        best = target[j] - lower[j + 1 :, j] @ d[j + 1 :] / lower[j, j]
        q[j] = np.clip(np.rint(best / scale[j]) + zero_point[j], lo[j], hi[j])
        d[j] = scale[j] * (q[j] - zero_point[j]) - target[j]
    return q


def optq(
    target: np.ndarray, gram: np.ndarray, scale: Numbers, zero_point: Numbers, lo: np.ndarray, hi: np.ndarray
) -> np.ndarray:
    """OPTQ (arXiv 2210.17323): from the first column to the last, those behind make each error good."""
    scale, zero_point = np.broadcast_to(scale, len(target)), np.broadcast_to(zero_point, len(target))
    upper = np.linalg.cholesky(np.linalg.inv(gram)).T
    w, q = target.copy(), np.zeros(len(target), np.int32)
    for j in range(len(target)):
        q[j] = np.clip(np.rint(w[j] / scale[j]) + zero_point[j], lo[j], hi[j])
        error = (w[j] - scale[j] * (q[j] - zero_point[j])) / upper[j, j]
        w[j + 1 :] -= error * upper[j, j + 1 :]
    return q


def closest_point(
    target: np.ndarray,
    gram: np.ndarray,
    scale: Numbers,
    zero_point: Numbers,
    lo: np.ndarray,
    hi: np.ndarray,
    most_nodes: int = 1024,
) -> np.ndarray:
    """All integers of the last column, the nearest first; for each all of the one before it; and so on.

    A branch that is no better than the best point so far ends. The best of the first `most_nodes` integers looked at.
    """
    scale, zero_point = np.broadcast_to(scale, len(target)), np.broadcast_to(zero_point, len(target))
    lower = np.linalg.cholesky(gram)
    looked_at, least, best = 0, np.inf, np.zeros(len(target), np.int32)

    def visit(j: int, q: np.ndarray, d: np.ndarray, cost: float) -> None:
        nonlocal looked_at, least, best
        if j < 0:
            least, best = cost, q.copy()
            return
        centre = (target[j] - lower[j + 1 :, j] @ d[j + 1 :] / lower[j, j]) / scale[j] + zero_point[j]
        for choice in sorted(range(lo[j], hi[j] + 1), key=lambda choice: abs(choice - centre)):
            looked_at += 1
            further = cost + (lower[j, j] * scale[j] * (choice - centre)) ** 2
            if looked_at > most_nodes or further >= least:
                return
            q[j], d[j] = choice, scale[j] * (choice - zero_point[j]) - target[j]
            visit(j - 1, q, d, further)

    visit(len(target) - 1, np.zeros(len(target), np.int32), np.zeros(len(target)), 0.0)
    return best


def coordinate_descent(
    q: np.ndarray,
    gram: np.ndarray,
    cross: np.ndarray,
    scale: Numbers,
    zero_point: Numbers,
    lo: np.ndarray,
    hi: np.ndarray,
    max_sweeps: int,
) -> np.ndarray:
    """Minimise w G w' - 2 w c' one weight at a time (QuantEase, arXiv 2309.01885; COMQ, 2403.07134)."""
    q, scale = q.copy(), np.broadcast_to(scale, len(q))
    for _ in range(max_sweeps):
        before = q.copy()
        for j in range(len(q)):
            if gram[j, j] <= 0:
                continue
            slope = scale * (q - zero_point) @ gram[:, j] - cross[j]
            q[j] = np.clip(np.rint(q[j] - slope / (scale[j] * gram[j, j])), lo[j], hi[j])
        if (q == before).all():
            break
    return q
