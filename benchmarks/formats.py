"""What number formats cost, and what finetuning and its companions win back, on real models.

    python benchmarks/formats.py [--rows resnet20-int4 ...] [--json result.json]

prints a Markdown table: agreement with the float model, logit mse and top-1 on the evaluation data, with onnxruntime's
optimisation off and, in brackets, at its default. Models are checked (`model_checks.py`) before they count. Seconds are
those of the call; time it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cases
import numpy as np
import onnx
from machine import describe_machine
from model_checks import check_only_integers_differ, check_runs
from narrow_weights import three_bit_like, two_bits
from peers.job import Reader, outputs
from rich import box
from rich.console import Console
from rich.table import Table

from quark.onnx import (
    AdaQuantConfig,
    AdaRoundConfig,
    AlgoConfig,
    BiasCorrectionConfig,
    CalibMethod,
    CLEConfig,
    Int4Spec,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    UInt8Spec,
    XInt8Spec,
    finetune,
)

_MINMAX, _CHANNEL = CalibMethod.MinMax, QuantGranularity.Channel
_XINT8 = QLayerConfig(activation=XInt8Spec(), weight=XInt8Spec())
_INT4 = QLayerConfig(activation=UInt8Spec(), weight=Int4Spec(quant_granularity=_CHANNEL))
_INT4_MINMAX = QLayerConfig(
    activation=UInt8Spec(), weight=Int4Spec(calibration_method=_MINMAX, quant_granularity=_CHANNEL)
)
_INT8 = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
_INT8_MINMAX = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec(calibration_method=_MINMAX))
_NARROW = {"int3-like": three_bit_like, "int2": two_bits}

_CLE = CLEConfig(cle_steps=-1)
_FINETUNE: tuple[tuple[AlgoConfig, ...], ...] = ((), (AdaRoundConfig(),), (AdaQuantConfig(),))
_COMPANIONS: tuple[tuple[AlgoConfig, ...], ...] = tuple(
    (*before, *after)
    for after in ((), (AdaRoundConfig(),))
    for before in ((), (CLEConfig(),), (_CLE,), (BiasCorrectionConfig(),), (_CLE, BiasCorrectionConfig()))
)


@dataclass(frozen=True)
class Row:
    """One format of one model; a line for each list of algorithms.

    Attributes:
        narrow: weights that `narrow_weights.py` makes from the layer's, "int3-like" or "int2".
    """

    name: str
    case: str
    samples: int
    layer: QLayerConfig
    algorithms: tuple[tuple[AlgoConfig, ...], ...] = _FINETUNE
    narrow: str | None = None


ROWS = (
    Row("mobilenet_v1-xint8", "mobilenet_v1", 100, _XINT8),
    Row("resnet20-int4-minmax", "resnet20", 256, _INT4_MINMAX),
    Row("resnet20-int4", "resnet20", 256, _INT4),
    Row("resnet20-int3-like", "resnet20", 256, _INT4, narrow="int3-like"),
    Row("resnet20-int2", "resnet20", 256, _INT4, narrow="int2"),
    Row("mobilenet_v1-int4-minmax", "mobilenet_v1", 100, _INT4_MINMAX),
    Row("mobilenet_v1-int4", "mobilenet_v1", 100, _INT4, (*_FINETUNE, *((_CLE, *f) for f in _FINETUNE))),
    *(
        Row(f"{case}-{name}", case, samples, layer, _COMPANIONS)
        for case, samples in (("mobilenet_v1", 100), ("resnet20", 256), ("kws", 256))
        for name, layer in (("int8-minmax", _INT8_MINMAX), ("int8", _INT8))
    ),
)


def main() -> None:
    a = _arguments()
    console, results = Console(width=150), []
    rows = [row for row in ROWS if row.name in (a.rows or row.name)]
    for row in rows:
        for figures in _measured(row, a.data):
            results.append(figures)
            console.print(figures["row"], figures["algorithms"], figures["seconds"], figures["defined"])
    console.print(describe_machine())
    console.print(_table(results))
    if a.json:
        a.json.write_text(json.dumps(results, indent=1))


def _measured(row: Row, data_folder: Path) -> Iterator[dict[str, Any]]:
    case = cases.load(row.case, data_folder)
    model, data = str(case.model), case.calib[: row.samples]
    name = onnx.load(model).graph.input[0].name
    reference = outputs(model, case.eval_x, optimise=True)
    float_top1 = _top1(reference, case.eval_y)
    with TemporaryDirectory() as folder:
        plain, tuned = Path(folder) / "plain.onnx", Path(folder) / "tuned.onnx"
        if row.narrow:
            ModelQuantizer(QConfig(row.layer)).quantize_model(model, plain, Reader(name, data))
            onnx.save(_NARROW[row.narrow](onnx.load(model), onnx.load(plain)), plain)
        for algorithms in row.algorithms:
            start, output = time.perf_counter(), tuned if algorithms else plain
            if not row.narrow:
                quantizer = ModelQuantizer(QConfig(row.layer, algo_config=list(algorithms)))
                quantizer.quantize_model(model, output, Reader(name, data))
            elif algorithms:
                finetune(model, plain, output, Reader(name, data), algorithms[0])
            seconds = time.perf_counter() - start
            if row.narrow != "int2":  # onnxruntime does not run it optimised
                check_runs(output)
            if algorithms and not any(isinstance(algorithm, CLEConfig) for algorithm in algorithms):
                check_only_integers_differ(plain, output)
            figures = {"row": row.name, "algorithms": _names(algorithms), "seconds": round(seconds, 1)}
            figures["float_top1"] = float_top1
            for key, optimise in (("defined", False), ("default", True)):
                if optimise and row.narrow == "int2":
                    continue
                got = outputs(str(output), case.eval_x, optimise=optimise)
                figures[key] = {
                    "agree": round(100 * float((got.argmax(1) == reference.argmax(1)).mean()), 2),
                    "mse": float(np.square(got - reference).mean()),
                    "top1": _top1(got, case.eval_y),
                }
            yield figures


def _top1(logits: Any, labels: Any) -> float | None:
    return None if labels is None else round(100 * float((logits.argmax(1) == labels).mean()), 2)


def _names(algorithms: Iterable[AlgoConfig]) -> str:
    names = {_CLE: "CLE -1"}
    return " + ".join(names.get(one, type(one).__name__.removesuffix("Config")) for one in algorithms) or "plain"


def _table(results: Iterable[dict[str, Any]]) -> Table:
    table = Table(box=box.MARKDOWN)
    for column in ("row", "algorithms", "agree % (default)", "logit mse (default)", "top-1 % (default; float)", "s"):
        table.add_column(column, no_wrap=True)
    for one in results:
        defined, default = one["defined"], one.get("default") or dict.fromkeys(("agree", "mse", "top1"))
        table.add_row(
            one["row"],
            one["algorithms"],
            f"{defined['agree']} ({_text(default['agree'])})",
            f"{defined['mse']:.4g} ({_text(default['mse'])})",
            f"{_text(defined['top1'])} ({_text(default['top1'])}; {_text(one['float_top1'])})",
            f"{one['seconds']}",
        )
    return table


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=cases.DATA, help="folder with the models and data of cases.py")
    p.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these")
    p.add_argument("--json", type=Path, help="write all figures there")
    return p.parse_args()


if __name__ == "__main__":
    main()
