"""What every side of a comparison does: the same options, reader, measuring and figures.

It runs in the peers' environments: NumPy and onnxruntime are all that it needs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from memory import resident_memory

_MIB = 2**20
_BATCH = 20
Array = npt.NDArray[np.float32]


class Reader:
    """One sample at a time, from the first on again after rewind()."""

    def __init__(self, name: str, samples: Array) -> None:
        self._name, self._samples, self._at = name, samples, 0

    def get_next(self) -> dict[str, Array] | None:
        """An item, or None at the end."""
        self._at += 1
        part = self._samples[self._at - 1 : self._at]
        return {self._name: part} if len(part) else None

    def rewind(self) -> None:
        """Starts from the first again."""
        self._at = 0


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options of a job."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--case", required=True, help="see cases.py")
    p.add_argument("--data", type=Path, default=cases.DATA, help="folder with the cases' models and data")
    p.add_argument("--samples", type=int, default=100, help="of calibration")
    p.add_argument("--algorithm", choices=("none", "adaround", "adaquant"), default="adaround")
    p.add_argument("--batch-size", type=int, default=1)
    p.add_argument("--iterations", type=int, default=1000)
    p.add_argument("--learning-rate", type=float, help="default: 0.1 for AdaRound, 1e-5 for AdaQuant")
    p.add_argument("--mem-opt-level", type=int, default=1)
    p.add_argument("--output", required=True, help="where the quantized model goes")
    return p


def keywords(a: argparse.Namespace) -> dict[str, Any]:
    """What the configuration of AdaRound or AdaQuant gets in the peers, whose interface is the same."""
    rate = a.learning_rate or (0.1 if a.algorithm == "adaround" else 1e-5)
    return {"batch_size": a.batch_size, "num_iterations": a.iterations, "learning_rate": rate}


def input_name(model: str) -> str:
    """The model's first input."""
    name: str = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()[0].name
    return name


def timed(run: Callable[[], Any]) -> tuple[dict[str, Any], Any]:
    """wall_s and memory of a call, and what it returned."""
    with resident_memory() as memory:
        start = time.perf_counter()
        result = run()
        wall = time.perf_counter() - start
    return {"wall_s": round(wall, 3), **memory.figures()}, result


def judged(case: cases.Case, output: str) -> dict[str, Any]:
    """The quantized model against the float model on the evaluation data, as it is defined and as onnxruntime runs it
    by default: agree and top1 in percent, mse of the logits.
    """
    reference = outputs(str(case.model), case.eval_x, optimise=True)
    found: dict[str, Any] = {"case_data_mib": round((case.calib.nbytes + case.eval_x.nbytes) / _MIB, 1)}
    for key, optimise in (("plain", False), ("ort_default", True)):
        got = outputs(output, case.eval_x, optimise=optimise)
        top = got.argmax(1)
        found[key] = {
            "agree": round(100 * float((top == reference.argmax(1)).mean()), 2),
            "mse": float(((got - reference) ** 2).mean()),
            "top1": None if case.eval_y is None else round(100 * float((top == case.eval_y).mean()), 2),
        }
    return found


def outputs(model: str, samples: Array, *, optimise: bool) -> Array:
    """The first output of a model, (samples, elements)."""
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    starts = range(0, len(samples), _BATCH)
    parts = [session.run(None, {name: samples[start : start + _BATCH]})[0] for start in starts]
    return np.concatenate(parts).reshape(len(samples), -1)


def run(peer: str, a: argparse.Namespace, quantize: Callable[[str, str, Reader], None]) -> None:
    """Do a job and print `PEER {json}`.

    Args:
        peer: its name and version.
        quantize: from the float model's path to the output's path, with a reader.
    """
    case = cases.load(a.case, a.data)
    model = str(case.model)
    reader = Reader(input_name(model), case.calib[: a.samples])
    figures, _ = timed(lambda: quantize(model, a.output, reader))
    told = {key: value for key, value in vars(a).items() if key != "data"}
    print("PEER " + json.dumps({"peer": peer, **told, **figures, **judged(case, a.output)}), flush=True)
