"""A peer's results: from an earlier run's file where it has them, else from a run now."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import fresh_process
from peers import amd_quark_log


@dataclass(frozen=True, kw_only=True)
class PeerJob:
    """One job of job.py, by its options. learning_rate: None for amd-quark's default of the algorithm."""

    case: str
    samples: int
    algorithm: str = "adaround"
    batch_size: int = 1
    iterations: int = 1000
    learning_rate: float | None = None

    @property
    def name(self) -> str:
        """All that tells it from other jobs."""
        return "_".join(str(value) for value in asdict(self).values() if value is not None)


class Peer:
    """Runs a peer's script and remembers what it gave.

    results: every result so far, as plain dicts; one from a file has `earlier` true.
    """

    def __init__(self, script: str, *, python: Path | None, data: Path, models: Path, earlier: Path | None) -> None:
        """script: a module beside this one. python: interpreter with the peer. data: folder of cases.py. models: folder
        for models. earlier: JSON of an earlier run.
        """
        self._script, self._python, self._data, self._models = script, python, data, models
        self.results: list[dict[str, Any]] = []
        if earlier is not None:
            found = json.loads(earlier.read_text())["peers"]
            self.results = [{**result, "earlier": True} for result in found]

    def result(self, job: PeerJob, *, with_model: bool = False, with_loop: bool = False) -> dict[str, Any]:
        """Figures of one job: keys of job.py and memory.py, and with an algorithm amd-quark's those of its log.

        with_model: its model file must exist. with_loop: the figures of the log must be there. An earlier result
        without them does not do.
        """
        wanted = asdict(job)
        for found in self.results:
            has_model, has_loop = Path(found["output"]).is_file(), "loop_s" in found
            if wanted.items() <= found.items() and (has_model or not with_model) and (has_loop or not with_loop):
                return found
        fresh = self._run(job)
        self.results.append(fresh)
        return fresh

    def _run(self, job: PeerJob) -> dict[str, Any]:
        if self._python is None:
            raise RuntimeError(
                f"no earlier result of {self._script} that has all it takes: {job}; "
                f"give the interpreter of its environment, which peers/{self._script}.py says how to make"
            )
        output = self._models / f"{self._script}_{job.name}.onnx"
        command = [str(self._python), "-m", f"peers.{self._script}", "--data", str(self._data), "--output", str(output)]
        for option, value in asdict(job).items():
            if value is not None:
                command += [f"--{option.replace('_', '-')}", str(value)]
        date, log = datetime.now().isoformat(timespec="seconds"), output.with_suffix(".log")
        figures = fresh_process.run(command, cwd=self._models, log=log)
        if job.algorithm != "none" and self._script == "amd_quark":
            figures |= amd_quark_log.loop_figures(log.read_text())
        return figures | {"earlier": False, "date": date}
