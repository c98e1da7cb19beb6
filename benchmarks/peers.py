"""The peer's results: from an earlier run's file where it has them, else from amd-quark run now."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import fresh_process

HERE = Path(__file__).resolve().parent


class Peer:
    """Runs amd-quark at its documented settings (batch 1, 1000 iterations) and remembers what it gave.

    results: every result so far, as plain dicts; one from a file has `earlier` true.
    """

    def __init__(self, *, python: Path | None, tools: Path, models: Path, earlier: Path | None) -> None:
        """python: interpreter with amd-quark. models: folder for models. earlier: JSON of an earlier run."""
        self._python, self._tools, self._models = python, tools, models
        self.results: list[dict[str, Any]] = []
        if earlier is not None:
            found = json.loads(earlier.read_text())["peers"]
            self.results = [{**result, "earlier": True} for result in found]

    def result(
        self, case: str, samples: int, *, algorithm: str = "adaround", with_model: bool = False
    ) -> dict[str, Any]:
        """Figures of one job (keys of peer_quark.py and memory.py). with_model: its model file must exist."""
        wanted = {"case": case, "samples": samples, "algorithm": algorithm}
        for found in self.results:
            if wanted.items() <= found.items() and (Path(found["output"]).is_file() or not with_model):
                return found
        fresh = self._run(case, samples, algorithm)
        self.results.append(fresh)
        return fresh

    def _run(self, case: str, samples: int, algorithm: str) -> dict[str, Any]:
        if self._python is None:
            raise RuntimeError(
                f"no earlier result of amd-quark {algorithm} on {case} with {samples} samples: "
                "give --peer-python, the interpreter of an environment with amd-quark 0.13"
            )
        output = self._models / f"quark_{case}_{samples}_{algorithm}.onnx"
        command = [str(self._python), str(HERE / "peer_memory.py"), str(self._tools / "peer_quark.py")]
        command += [
            "--case",
            case,
            "--samples",
            str(samples),
            "--algorithm",
            algorithm,
            "--output",
            str(output),
        ]
        date = datetime.now().isoformat(timespec="seconds")
        return fresh_process.run(command, cwd=self._models) | {"earlier": False, "date": date}
