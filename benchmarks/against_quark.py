"""Compare this package with amd-quark 0.13: the same jobs, one after the other, each in a fresh process.

    python benchmarks/against_quark.py --peer-python VENV/bin/python --json result.json
    python benchmarks/against_quark.py --peer-json result.json --rows mobilenet_v1-100
    python benchmarks/against_quark.py --solver gradient --peer-python VENV/bin/python --json gradient.json
    python benchmarks/against_quark.py --lazy-memory

README.md says what every column means. Exit status: 0 if every floor holds, 1 if one is missed or a result
is not sound.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cases
import model_checks
from comparison import Comparison
from gradient_rows import GRADIENT_ROWS, GradientRow
from machine import describe_machine
from peers.results import Peer
from rich.console import Console
from rows import ROWS, Row
from tables import figures_table, floors_table, gradient_table, lazy_memory_table, solvers_table


def _selected(a: argparse.Namespace) -> list[Row] | list[GradientRow]:
    rows = GRADIENT_ROWS if a.solver == "gradient" else ROWS
    chosen = [row for row in rows if row.name in (a.rows or row.name) and row.case in (a.cases or row.case)]
    if a.samples is None:
        return chosen
    return list({row.name: row for row in (row.with_samples(a.samples) for row in chosen)}.values())


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--peer-python", type=Path, help="interpreter of an environment with amd-quark 0.13 and torch")
    p.add_argument("--peer-json", type=Path, help="JSON of an earlier run, whose results of amd-quark are used again")
    p.add_argument(
        "--peer-only", action="store_true", help="run amd-quark for the rows and stop: a file for --peer-json"
    )
    p.add_argument("--data", type=Path, default=cases.DATA, help="folder with the models and data of cases.py")
    p.add_argument(
        "--solver",
        choices=("auto", "gradient"),
        default="auto",
        help="auto: quantize_model as it is by default; gradient: the published loops on amd-quark's plain models",
    )
    rows = (*ROWS, *GRADIENT_ROWS)
    p.add_argument("--rows", nargs="+", choices=[row.name for row in rows], metavar="ROW", help="only these rows")
    p.add_argument(
        "--cases",
        nargs="+",
        choices=sorted({row.case for row in rows}),
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
    a = p.parse_args()
    if not _selected(a):
        p.error(f"--solver {a.solver} has no row of that name and case")
    return a


def main() -> int:
    a = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        models = (a.models or Path(scratch)).resolve()
        models.mkdir(parents=True, exist_ok=True)
        return _run(a, models)


def _run(a: argparse.Namespace, models: Path) -> int:
    console = Console(width=None if sys.stdout.isatty() else 200)
    data = a.data.resolve()
    peer = Peer(
        "amd_quark", python=a.peer_python and a.peer_python.absolute(), data=data, models=models, earlier=a.peer_json
    )
    comparison = Comparison(data=data, models=models, peer=peer, console=console)
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
                comparison.peers(row)
            elif isinstance(row, GradientRow):
                report["rows"].append(comparison.gradient_row(row))
            else:
                report["rows"].append(comparison.row(row))
        except (RuntimeError, model_checks.CheckError) as error:
            report["failed"][row.name] = str(error)
        save()
    if a.solver == "gradient":
        console.print(gradient_table(report["rows"]), solvers_table(report["rows"]), floors_table(report["rows"]))
    else:
        console.print(figures_table(report["rows"]), floors_table(report["rows"]))
    for name, reason in report["failed"].items():
        console.print(f"{name} FAILED: {reason}", style="red", markup=False)
    missed = any(not floor["holds"] for row in report["rows"] for floor in row["floors"])
    return 1 if missed or report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
