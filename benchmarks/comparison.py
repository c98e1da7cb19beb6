"""Runs the jobs of the comparison, each in a fresh process, and checks what they gave."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fresh_process
import model_checks
from gradient_rows import GradientRow, judge_gradient
from layer_errors import check_same_measure
from peers.results import Peer, PeerJob
from rich.console import Console
from rows import Row, Verdict, judge

HERE = Path(__file__).resolve().parent
_LAZY_SAMPLES = (64, 256)
_LAZY_GROWTH = 30e6 / 2**20  # MiB; the floor is 30 MB


class Comparison:
    """One run of the benchmark: runs jobs, keeps the bounds, checks results."""

    def __init__(self, *, data: Path, models: Path, peer: Peer, console: Console) -> None:
        self._data, self._models, self._peer, self._console = data, models, peer, console
        self._bounds: dict[tuple[str, int], dict[str, Any]] = {}

    def row(self, row: Row) -> dict[str, Any]:
        """Both sides of one row, the bound and the verdicts; both models are checked before it returns.

        Raises:
            RuntimeError: a side failed.
            model_checks.CheckError: a side's model is not what it has to be.
        """
        peer, plain = self.peers(row)
        options = ["--weight-method", row.weight_method]
        finetune: list[str] = []
        if plain is not None:
            finetune = ["--finetune", str(plain)]
        else:
            plain = self._models / f"{row.name}-plain.onnx"
            self._console.print(f"{row.name}: plain model", style="dim")
            self._ours(row, plain, *options, "--algorithm", "none")
        self._console.print(f"{row.name}: ours", style="dim")
        ours = self._ours(row, self._models / f"{row.name}.onnx", *options, *finetune)
        self._check(ours, peer, plain)
        peer = peer | {"case_data_mib": ours["case_data_mib"]}  # both sides load the same
        bound = self._bound(row, plain)
        return {
            "row": row.name,
            "ours": ours,
            "peer": peer,
            "bound": bound,
            "floors": _floors(judge(row, ours, peer, bound)),
        }

    def gradient_row(self, row: GradientRow) -> dict[str, Any]:
        """The published loop on amd-quark's plain model by both sides, and ours by least squares; else as row()."""
        peer, plain = self.peers(row)
        options = ["--algorithm", row.algorithm, "--batch-size", str(row.batch_size)]
        options += ["--iterations", str(row.iterations), "--finetune", str(plain)]
        if row.learning_rate is not None:
            options += ["--learning-rate", str(row.learning_rate)]
        ours = {}
        for solver in ("gradient", "least_squares"):
            self._console.print(f"{row.name}: ours, {solver}", style="dim")
            output = self._models / f"{row.name}-{solver}.onnx"
            ours[solver] = self._ours(row, output, *options, "--solver", solver)
            self._check(ours[solver], peer, plain)
        check_same_measure(ours["gradient"]["layer_errors"], peer["layer_errors"])
        return {
            "row": row.name,
            "ours": ours["gradient"],
            "least_squares": ours["least_squares"],
            "peer": peer,
            "floors": _floors(judge_gradient(row, ours["gradient"], peer)),
        }

    def peers(self, row: Row | GradientRow) -> tuple[dict[str, Any], Path | None]:
        """amd-quark's result of a row, and its plain model if the row starts from that.

        Raises:
            RuntimeError: amd-quark failed, or has to run and there is none.
            model_checks.CheckError: its log is not what it has to be.
        """
        self._console.print(f"{row.name}: amd-quark", style="dim")
        peer = self._peer.result(row.peer_job, with_loop=isinstance(row, GradientRow))
        if not row.finetune_peers_model:
            return peer, None
        plain = PeerJob(case=row.case, samples=row.samples, algorithm="none")
        return peer, Path(self._peer.result(plain, with_model=True)["output"])

    def lazy_memory(self, case: str) -> dict[str, Any]:
        """Peak memory (MiB) of a call at memory level 2 on few and on many samples that the reader makes."""
        peaks = {}
        for samples in _LAZY_SAMPLES:
            self._console.print(f"memory level 2, {samples} samples made on the fly", style="dim")
            output = self._models / f"lazy-{samples}.onnx"
            row = Row(case=case, samples=samples)
            done = self._ours(row, output, "--random-data", "--mem-opt-level", "2")
            model_checks.check_runs(output)
            peaks[samples] = {key: done[key] for key in ("peak_rss_mib", "growth_mib", "wall_s")}
        few, many = (peaks[samples]["peak_rss_mib"] for samples in _LAZY_SAMPLES)
        more = round(many - few, 1)
        return {
            "case": case,
            "samples": peaks,
            "more_mib": more,
            "limit_mib": _LAZY_GROWTH,
            "holds": more <= _LAZY_GROWTH,
        }

    def _ours(self, row: Row | GradientRow, output: Path, *options: str) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "ours.py"), "--data", str(self._data), "--case", row.case]
        command += ["--samples", str(row.samples), "--output", str(output), *options]
        return fresh_process.run(command, cwd=self._models)

    def _bound(self, row: Row, plain: Path) -> dict[str, Any]:
        key = (row.case, row.samples)
        if key not in self._bounds:
            self._console.print(f"{row.name}: bound", style="dim")
            command = [
                sys.executable,
                str(HERE / "bound.py"),
                "--data",
                str(self._data),
                "--case",
                row.case,
            ]
            command += ["--samples", str(row.samples), "--quantized", str(plain)]
            self._bounds[key] = fresh_process.run(command, cwd=self._models)
        return self._bounds[key]

    @staticmethod
    def _check(ours: dict[str, Any], peer: dict[str, Any], plain: Path) -> None:
        """Both models are sound; ours is the plain one but for integers, of which it notes how many changed."""
        model_checks.check_runs(Path(ours["output"]))
        if not peer["earlier"]:  # an earlier result was checked when it was made
            model_checks.check_runs(Path(peer["output"]))
        for side, figures in (("ours", ours), ("amd-quark", peer)):
            if not all(math.isfinite(figures[key]["mse"]) for key in ("plain", "ort_default")):
                raise model_checks.CheckError(f"{side}: outputs on the evaluation data are not finite")
        ours["initializers_changed"] = model_checks.check_only_integers_differ(plain, Path(ours["output"]))


def _floors(verdicts: list[Verdict]) -> list[dict[str, Any]]:
    return [asdict(verdict) | {"holds": verdict.holds} for verdict in verdicts]
