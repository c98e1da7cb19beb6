"""Compare this package with amd-quark 0.13: the same jobs, one after the other, each in a fresh process.

    python benchmarks/against_quark.py --peer-python VENV/bin/python --json result.json
    python benchmarks/against_quark.py --peer-json result.json --rows mobilenet_v1-100
    python benchmarks/against_quark.py --lazy-memory

README.md says what every column means. Exit status: 0 if every floor holds, 1 if one is missed or a result
is not sound.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import fresh_process
import model_checks
from machine import describe_machine
from peers import Peer
from rich.console import Console
from rows import ROWS, Row, judge
from tables import figures_table, floors_table, lazy_memory_table

HERE = Path(__file__).resolve().parent
_LAZY_SAMPLES = (64, 256)
_LAZY_GROWTH = 30e6 / 2**20  # MiB; the floor is 30 MB


class Comparison:
    """One run of the benchmark: runs jobs, keeps the bounds, checks results."""

    def __init__(self, *, tools: Path, models: Path, peer: Peer, console: Console) -> None:
        self._tools, self._models, self._peer, self._console = tools, models, peer, console
        self._bounds: dict[tuple[str, int], dict[str, Any]] = {}

    def row(self, row: Row) -> dict[str, Any]:
        """Both sides of one row, the bound and the verdicts; both models are checked before it returns.

        Raises:
            RuntimeError: a side failed.
            model_checks.CheckError: a side's model is not what it has to be.
        """
        self._console.print(f"{row.name}: amd-quark", style="dim")
        peer = self._peer.result(row.case, row.samples)
        finetune: list[str] = []
        if row.finetune_peers_model:
            start = self._peer.result(row.case, row.samples, algorithm="none", with_model=True)
            plain = Path(start["output"])
            finetune = ["--finetune", str(plain)]
        else:
            plain = self._models / f"{row.name}-plain.onnx"
            self._console.print(f"{row.name}: plain model", style="dim")
            self._ours(row, plain, "--algorithm", "none")
        self._console.print(f"{row.name}: ours", style="dim")
        ours = self._ours(row, self._models / f"{row.name}.onnx", *finetune)
        self._check(ours, peer)
        ours["initializers_changed"] = model_checks.check_only_integers_differ(plain, Path(ours["output"]))
        peer = peer | {"case_data_mib": ours["case_data_mib"]}  # both sides load the same
        bound = self._bound(row, plain)
        return {
            "row": row.name,
            "ours": ours,
            "peer": peer,
            "bound": bound,
            "floors": [asdict(v) | {"holds": v.holds} for v in judge(row, ours, peer, bound)],
        }

    def lazy_memory(self, case: str) -> dict[str, Any]:
        """Peak memory (MiB) of a call at memory level 2 on few and on many samples that the reader makes."""
        peaks = {}
        for samples in _LAZY_SAMPLES:
            self._console.print(f"memory level 2, {samples} samples made on the fly", style="dim")
            output = self._models / f"lazy-{samples}.onnx"
            done = self._ours(Row(case=case, samples=samples), output, "--random-data", "--mem-opt-level", "2")
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

    def _ours(self, row: Row, output: Path, *options: str) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "ours.py"), "--tools", str(self._tools), "--case", row.case]
        command += [
            "--samples",
            str(row.samples),
            "--weight-method",
            row.weight_method,
            "--output",
            str(output),
            *options,
        ]
        return fresh_process.run(command, cwd=self._models)

    def _bound(self, row: Row, plain: Path) -> dict[str, Any]:
        key = (row.case, row.samples)
        if key not in self._bounds:
            self._console.print(f"{row.name}: bound", style="dim")
            command = [
                sys.executable,
                str(HERE / "bound.py"),
                "--tools",
                str(self._tools),
                "--case",
                row.case,
            ]
            command += ["--samples", str(row.samples), "--quantized", str(plain)]
            self._bounds[key] = fresh_process.run(command, cwd=self._models)
        return self._bounds[key]

    @staticmethod
    def _check(ours: dict[str, Any], peer: dict[str, Any]) -> None:
        model_checks.check_runs(Path(ours["output"]))
        if not peer["earlier"]:  # an earlier result was checked when it was made
            model_checks.check_runs(Path(peer["output"]))
        for side, figures in (("ours", ours), ("amd-quark", peer)):
            if not all(math.isfinite(figures[key]["mse"]) for key in ("plain", "ort_default")):
                raise model_checks.CheckError(f"{side}: outputs on the evaluation data are not finite")


def _selected(a: argparse.Namespace) -> list[Row]:
    rows = [row for row in ROWS if row.name in (a.rows or row.name) and row.case in (a.cases or row.case)]
    if a.samples is None:
        return rows
    others = (replace(row, samples=a.samples, mse=None, mse_of_peer=None, agree=None) for row in rows)
    return list({row.name: row for row in others}.values())


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer-python", type=Path, help="interpreter of an environment with amd-quark 0.13 and torch")
    p.add_argument("--peer-json", type=Path, help="JSON of an earlier run, whose results of amd-quark are used again")
    p.add_argument(
        "--peer-only", action="store_true", help="run amd-quark for the rows and stop: a file for --peer-json"
    )
    p.add_argument("--tools", type=Path, default=HERE.parent.parent / "shared/tools", help="folder with peer_quark.py")
    p.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW", help="only these rows")
    p.add_argument(
        "--cases",
        nargs="+",
        choices=sorted({row.case for row in ROWS}),
        metavar="CASE",
        help="only their rows",
    )
    p.add_argument(
        "--samples", type=int, help="another number of samples; its floors on mse and agreement do not apply"
    )
    p.add_argument("--models", type=Path, help="folder that keeps the models; default: a temporary one")
    p.add_argument("--json", type=Path, help="file to write")
    p.add_argument(
        "--lazy-memory", action="store_true", help="instead: memory for 64 and 256 samples from a lazy reader"
    )
    return p.parse_args()


def main() -> int:
    a = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        models = (a.models or Path(scratch)).resolve()
        models.mkdir(parents=True, exist_ok=True)
        return _run(a, models)


def _run(a: argparse.Namespace, models: Path) -> int:
    console = Console(width=None if sys.stdout.isatty() else 200)
    tools = a.tools.resolve()
    peer = Peer(python=a.peer_python and a.peer_python.absolute(), tools=tools, models=models, earlier=a.peer_json)
    comparison = Comparison(tools=tools, models=models, peer=peer, console=console)
    report: dict[str, Any] = {"machine": describe_machine(), "rows": [], "failed": {}, "peers": peer.results}

    def save() -> None:
        if a.json:
            a.json.write_text(json.dumps(report, indent=1) + "\n")

    if a.lazy_memory:
        report["lazy_memory"] = comparison.lazy_memory((a.cases or ["mobilenet_v1"])[0])
        save()
        console.print(lazy_memory_table(report["lazy_memory"]))
        return 0 if report["lazy_memory"]["holds"] else 1
    for row in _selected(a):
        try:
            if a.peer_only:
                peer.result(row.case, row.samples)
                if row.finetune_peers_model:
                    peer.result(row.case, row.samples, algorithm="none", with_model=True)
            else:
                report["rows"].append(comparison.row(row))
        except (RuntimeError, model_checks.CheckError) as error:
            report["failed"][row.name] = str(error)
        save()
    console.print(figures_table(report["rows"]), floors_table(report["rows"]))
    for name, reason in report["failed"].items():
        console.print(f"{name} FAILED: {reason}", style="red", markup=False)
    missed = any(not floor["holds"] for row in report["rows"] for floor in row["floors"])
    return 1 if missed or report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
