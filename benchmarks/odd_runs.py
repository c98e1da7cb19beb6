"""Odd networks, weights, data, formats and solvers: is a finetuned model ever worse than plain rounding on unseen data?

    python benchmarks/odd_runs.py [--runs 1000] [--seed 0] [--json runs.json]

draws runs from all combinations, compares the finetuned model and the plain one with the float model on samples that
neither has seen, and prints how many are worse by more than 2 % (as L2), the worst of them, and the same by kind. A NaN
or Inf in a model, which there must never be, ends it with status 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from odd_models import DATA, NETWORKS, WEIGHTS, odd_data, odd_model
from onnx import numpy_helper
from rich.progress import track

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    QuarkError,
    UInt8Spec,
)

__all__ = ["Outcome", "Run", "all_runs", "outcome"]

_UNSEEN = 512  # samples
_WORSE = 1.02  # as L2
_NOTHING = 1e-6  # of the float outputs' L2: an error below it is that of float32
_CHANNEL = QuantGranularity.Channel
_FORMATS = {
    "Int8": QLayerConfig(UInt8Spec(), weight=Int8Spec()),
    "Int8 per channel": QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=_CHANNEL)),
    "Int4 per channel": QLayerConfig(UInt8Spec(), weight=Int4Spec(quant_granularity=_CHANNEL)),
}
_STEPS = 200
_SOLVERS: dict[str, AlgoConfig] = {
    "AdaRound": AdaRoundConfig(),
    "AdaQuant": AdaQuantConfig(),
    "AdaRound, gradient": AdaRoundConfig(solver="gradient", num_iterations=_STEPS),
    "AdaQuant, gradient": AdaQuantConfig(solver="gradient", num_iterations=_STEPS),
}
_SAMPLES = (10, 20, 40, 100)

Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Run:
    """One combination."""

    network: str
    weights: str
    data: str
    format: str
    solver: str
    samples: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    Attributes:
        ratio: L2 of the finetuned model's error over the plain model's, on unseen data; NaN where one is refused.
        warned: the report says that layers were taken back, or that the whole model is no closer.
        refused: why.
    """

    run: Run
    ratio: float
    warned: bool = False
    refused: str = ""

    @property
    def is_worse(self) -> bool:
        """Than plain rounding, by more than its 2 %."""
        return self.ratio > _WORSE


class _Reader:
    def __init__(self, arrays: Arrays) -> None:
        (self._name, self._array), self._next = next(iter(arrays.items())), 0

    def get_next(self) -> Arrays | None:
        self._next += 1
        item = self._array[self._next - 1 : self._next]
        return {self._name: item} if len(item) else None


def all_runs(seed: int) -> Iterator[Run]:
    """Combinations without end, drawn at random."""
    random = np.random.default_rng(seed)

    def one_of(values: Sequence[str] | Sequence[int]) -> int:
        return int(random.integers(len(values)))

    weights, data, formats, solvers = map(tuple, (WEIGHTS, DATA, _FORMATS, _SOLVERS))
    while True:
        yield Run(
            NETWORKS[one_of(NETWORKS)],
            weights[one_of(weights)],
            data[one_of(data)],
            formats[one_of(formats)],
            solvers[one_of(solvers)],
            _SAMPLES[one_of(_SAMPLES)],
            int(random.integers(1 << 16)),
        )


def outcome(run: Run) -> Outcome:
    """Quantize, finetune, and compare both models on unseen data.

    Raises:
        ValueError: a NaN or Inf was written.
    """
    model = odd_model(run.network, run.weights, run.seed)
    calibration = odd_data(run.data, model, run.samples, run.seed)
    unseen = odd_data(run.data, model, _UNSEEN, run.seed + 1)
    try:
        plain = _quantized(run, model, calibration)[0]
        tuned, warnings = _quantized(run, model, calibration, _SOLVERS[run.solver])
    except QuarkError as error:
        return Outcome(run, math.nan, refused=str(error))
    want = _output(model, unseen)
    power = float(np.sqrt((want**2).mean()))
    errors = [float(np.sqrt(((_output(one, unseen) - want) ** 2).mean())) for one in (plain, tuned)]
    before, after = (max(error, _NOTHING * power, np.finfo(np.float32).tiny) for error in errors)
    warned = any("whole model" in line for line in warnings)
    return Outcome(run, after / before, warned)


def _quantized(
    run: Run, model: onnx.ModelProto, calibration: Arrays, *algorithms: AlgoConfig
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    options = {"NumThreads": 1}
    quantizer = ModelQuantizer(QConfig(_FORMATS[run.format], algo_config=list(algorithms), extra_options=options))
    result = quantizer.quantize_model(model, None, _Reader(calibration))
    assert result is not None
    assert quantizer.report is not None
    for tensor in result.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{run}: {tensor.name!r} is not finite")
    return result, quantizer.report.warnings


def _output(model: onnx.ModelProto, arrays: Arrays) -> npt.NDArray[np.float64]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    result: npt.NDArray[np.float64] = session.run(None, arrays)[0].astype(np.float64)
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="every run, with its ratio")
    return parser


def main() -> int:
    arguments = _parser().parse_args()
    logging.disable(logging.WARNING)
    runs, found, status = all_runs(arguments.seed), list[Outcome](), 0
    for _ in track(range(arguments.runs), description="Odd runs"):
        try:
            found.append(outcome(next(runs)))
        except ValueError as error:
            print(error)
            status = 1
    if arguments.json:
        lines = [asdict(one) for one in found]
        arguments.json.write_text(json.dumps(lines, indent=1))
    _print(found)
    return status


def _print(found: list[Outcome]) -> None:
    compared = [one for one in found if not one.refused]
    worse = sorted((one for one in compared if one.is_worse), key=lambda one: -one.ratio)
    mean = math.exp(sum(math.log(one.ratio) for one in compared) / max(1, len(compared)))
    print(f"{len(compared)} compared, {len(found) - len(compared)} refused; L2 over plain's, geometric mean {mean:.4f}")
    silent = sum(not one.warned for one in worse)
    print(f"worse than plain by more than 2 %: {len(worse)}, {silent} of them without a warning")
    for one in worse:
        print(f"  {one.ratio:6.3f}  {one.run}{'' if not one.warned else '  (warned)'}")
    for kind in ("network", "weights", "data", "format", "solver", "samples"):
        of_all = Counter(getattr(one.run, kind) for one in compared)
        of_worse = Counter(getattr(one.run, kind) for one in worse)
        print(f"{kind}: " + ", ".join(f"{value} {of_worse[value]}/{count}" for value, count in sorted(of_all.items())))
    for why, count in Counter(one.refused for one in found if one.refused).most_common():
        print(f"refused {count}: {why}")


if __name__ == "__main__":
    sys.exit(main())
