"""Our side of the comparison: the same job as the peer's script, in a process of its own.

    python benchmarks/ours.py --case mobilenet_v1 --samples 100 --output ours.onnx

prints `OURS {json}`: the figures of peers/job.py, the memory of the call and what finetuning did to the layers. With
--finetune MODEL the job is finetune() on that Q/DQ model instead of quantize_model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cases
import numpy as np
import numpy.typing as npt
import onnx
from layer_errors import mean_square
from peers.job import Reader, arguments, input_name, judged, timed

from quark.onnx import ModelQuantizer, Report, finetune
from quark.onnx.config import QConfig
from quark.onnx.config.algorithm import AdaQuantConfig, AdaRoundConfig
from quark.onnx.config.spec import CalibMethod, Int8Spec, QLayerConfig, UInt8Spec

_UNSEEN = 200  # evaluation samples


class RandomReader:
    """Uniform samples in [-1, 1), made when they are asked for: the reader itself holds nothing."""

    def __init__(self, name: str, shape: tuple[int, ...], samples: int) -> None:
        self._name, self._shape, self._left = name, shape, samples
        self._rng = np.random.default_rng(0)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        if not self._left:
            return None
        self._left -= 1
        return {self._name: 2 * self._rng.random((1, *self._shape), dtype=np.float32) - 1}


def main() -> None:
    a = _arguments()
    print("OURS " + json.dumps(_memory_only(a) if a.random_data else _compared(a)))


def _compared(a: argparse.Namespace) -> dict[str, Any]:
    """What the peers' scripts do: the same data in memory, the same reader, the same evaluation."""
    case = cases.load(a.case, a.data)
    model = str(case.model)
    reader = Reader(input_name(model), case.calib[: a.samples])
    figures, report = timed(_job(a, model, reader))
    result = figures | {"output": a.output}
    if report.layers:
        result |= _layer_figures(report, a.output)
        unseen = Reader(input_name(model), case.eval_x[:_UNSEEN])
        result["unseen_error"] = _unseen_error(model, a.output, unseen)
    return result | judged(case, a.output)


def _memory_only(a: argparse.Namespace) -> dict[str, Any]:
    """The job on random samples, in a process that never held the case's data."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other:
        model, shape = other.submit(_model_and_shape, a.data, a.case).result()
    return timed(_job(a, model, RandomReader(input_name(model), shape, a.samples)))[0]


def _model_and_shape(data: Path, name: str) -> tuple[str, tuple[int, ...]]:
    case = cases.load(name, data)
    return str(case.model), case.calib.shape[1:]


def _layer_figures(report: Report, output: str) -> dict[str, Any]:
    """loop_s: seconds for finding all layers' integers. layer_errors: [before, after] as layer_errors.py measures.

    output: the quantized model, in which nodes compute what amd-quark names layers by.
    """
    layers = report.layers
    computes = {node.name: node.output[0] for node in onnx.load(output).graph.node}
    return {
        "loop_s": round(sum(layer.solve_seconds for layer in layers), 3),
        "layer_errors": {
            computes[layer.name]: [mean_square(pair, layer.rows, layer.outputs) for pair in (layer.before, layer.after)]
            for layer in layers
        },
    }


def _unseen_error(float_model: str, quantized: str, reader: Any) -> float:
    """Error by power of the float output on samples that no solver has seen, mean over the layers.

    Finetuning in parallel looks at all layers of the model as it is: the errors are those before it changes anything.
    """
    config = AdaRoundConfig(solver="least_squares", parallel=True)
    _, report = finetune(float_model, quantized, None, reader, config)
    shares = [
        mean_square(layer.before, layer.rows, 1) / mean_square(layer.power, layer.rows, 1) for layer in report.layers
    ]
    return sum(shares) / len(shares)


def _job(a: argparse.Namespace, model: str, reader: Any) -> Callable[[], Report]:
    rate = {} if a.learning_rate is None else {"learning_rate": a.learning_rate}
    kind = AdaQuantConfig if a.algorithm == "adaquant" else AdaRoundConfig
    algorithm = kind(
        batch_size=a.batch_size,
        num_iterations=a.iterations,
        mem_opt_level=a.mem_opt_level,
        solver=a.solver,
        **rate,
    )
    if a.finetune:
        return lambda: finetune(model, a.finetune, a.output, reader, algorithm)
    weight = Int8Spec(calibration_method=CalibMethod.MinMax) if a.weight_method == "MinMax" else Int8Spec()
    layer = QLayerConfig(activation=UInt8Spec(), weight=weight)
    algorithms = [] if a.algorithm == "none" else [algorithm]
    quantizer = ModelQuantizer(QConfig(global_config=layer, algo_config=algorithms))

    def quantize() -> Report:
        quantizer.quantize_model(model, a.output, reader)
        return quantizer.report

    return quantize


def _arguments() -> argparse.Namespace:
    p = arguments(__doc__)
    p.add_argument("--solver", choices=("auto", "least_squares", "gradient"), default="auto")
    p.add_argument("--weight-method", choices=("default", "MinMax"), default="default")
    p.add_argument("--finetune", help="Q/DQ model of another tool to finetune")
    p.add_argument("--random-data", action="store_true", help="calibrate on samples made on the fly; memory only")
    return p.parse_args()


if __name__ == "__main__":
    main()
