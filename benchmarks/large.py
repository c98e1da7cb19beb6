"""Networks of the size that people deploy, with random weights: CPU time, memory, and how far from the limit.

    python benchmarks/large.py resnet18 --samples 32
    python benchmarks/large.py                            # all of them
    python benchmarks/large.py resnet18 --json large.json --layers

Each network is made (`networks/`), then quantized and finetuned with the defaults of `quantize`, in a process of its
own that maps its samples from a file. The limit is that of `network_limit.py`. Random weights behind
BatchNormalization amplify every rounding, so that single quantizers destroy some of these networks as they do no
trained one: what stays in float then costs time too. `--without-islands` does not look for them (MaxFloatShare=0).
`--optim-device cuda:0 --infer-device cuda:0` use a GPU (docs/gpu.md): there the wall time counts.

OpenBLAS's variables OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are removed: the kernels are those that users get.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fresh_process import run
from machine import describe_machine
from memory import resident_memory
from network_limit import LayerSize, Rates, limit_seconds, measured_rates
from networks.catalogue import NETWORKS
from rich.console import Console
from rich.table import Table
from tables import markdown_table

_HERE = Path(__file__).resolve().parent
_COLUMNS = (
    *("network", "samples", "CPU s", "wall s", "limit s", "multiple", "peak RSS MiB", "model MiB", "layers tuned"),
    "SQNR dB, plain -> tuned",
)
_DEVICES = ("optim_device", "infer_device")  # of AdaRoundConfig
_PASSES = 4  # of one sample each, to know what a float pass costs


def main() -> None:
    """Print a table."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    options = _options()
    if options.step:
        print("LARGE", json.dumps(_STEPS[options.step](options)), flush=True)
        return
    console = Console(width=200)
    table, found = markdown_table(*_COLUMNS), []
    rates = _step(options, "rates", threads=1)
    with tempfile.TemporaryDirectory() as scratch:
        options.folder = options.folder or Path(scratch)
        for name in options.networks or NETWORKS:
            figures = _measured(options, name, Rates(**{key: rates[key] for key in ("product", "factor", "bytes")}))
            found.append(figures)
            table.add_row(*_row(figures))
            console.print(f"{name}: {_phases(figures)}")
            if options.layers:
                _print_layers(figures, console)
    console.print(table)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"machine": describe_machine(), "rates": rates, "networks": found}, indent=1)
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(NETWORKS))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seed", type=int, default=2, help="of the samples")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--without-islands", action="store_true", help="look for no activations that stay in float")
    for device in _DEVICES:
        parser.add_argument(
            f"--{device.replace('_', '-')}", default="cpu", metavar="DEVICE", help="of AdaRound: cuda:0"
        )
    parser.add_argument("--layers", action="store_true", help="print the layers that took longest")
    parser.add_argument("--folder", type=Path, help="keep models and data there, and take those that are there")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--step", choices=sorted(_STEPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.networks) - set(NETWORKS)
    if unknown:
        parser.error(f"no such network: {', '.join(sorted(unknown))}")
    return options


def _measured(options: argparse.Namespace, name: str, rates: Rates) -> dict[str, Any]:
    """All figures of one network."""
    _step(options, "make", name)
    figures = _step(options, "quantize", name)
    figures |= _step(options, "pass", name, threads=1)
    layers = [LayerSize(**layer["size"]) for layer in figures["layers"]]
    figures["limit_s"] = limit_seconds(layers, options.samples, figures["float_pass_s"], rates)
    figures["network"], figures["samples"] = name, options.samples
    return figures


def _step(options: argparse.Namespace, step: str, name: str = "", *, threads: int = 0) -> dict[str, Any]:
    """What one step gives, in a process of its own."""
    words = ["--step", step, "--samples", str(options.samples), "--seed", str(options.seed)]
    words += ["--without-islands"] * options.without_islands
    words += [f"--{device.replace('_', '-')}={getattr(options, device)}" for device in _DEVICES]
    words += ["--threads", str(options.threads), *([name, "--folder", str(options.folder)] if name else [])]
    if threads:
        os.environ["OPENBLAS_NUM_THREADS"] = str(threads)
    try:
        return run([sys.executable, str(Path(__file__).resolve()), *words], cwd=_HERE)
    finally:
        os.environ.pop("OPENBLAS_NUM_THREADS", None)


def _files(options: argparse.Namespace) -> tuple[Path, Path, Path]:
    """The model, the samples, the result."""
    (name,) = options.networks
    folder: Path = options.folder
    return (
        folder / f"{name}.onnx",
        folder / f"{name}-{options.samples}-{options.seed}.npy",
        folder / f"{name}-int8.onnx",
    )


def _make(options: argparse.Namespace) -> dict[str, Any]:
    model, samples, _ = _files(options)
    network = NETWORKS[options.networks[0]]
    options.folder.mkdir(parents=True, exist_ok=True)
    if not model.exists():
        onnx.save(network.model(), model)
    if not samples.exists():
        np.save(samples, network.samples(options.samples, network.shape, options.seed))
    return {"model_mib": model.stat().st_size / 2**20}


def _quantize(options: argparse.Namespace) -> dict[str, Any]:
    from quark.onnx import AdaRoundConfig, Int8Spec, QConfig, QLayerConfig, UInt8Spec, quantize

    model, samples, result = _files(options)
    config = QConfig(
        QLayerConfig(activation=UInt8Spec(), weight=Int8Spec()),
        algo_config=[AdaRoundConfig(**{device: getattr(options, device) for device in _DEVICES})],
        extra_options={"NumThreads": options.threads, **({"MaxFloatShare": 0.0} if options.without_islands else {})},
    )
    gc.collect()
    wall = time.monotonic()
    time.perf_counter = time.process_time  # the report's phases and layers are CPU seconds: the machine may be shared
    cpu = time.process_time()
    with resident_memory() as memory:
        report = quantize(str(model), str(result), str(samples), config)
    cpu = time.process_time() - cpu
    groups = _groups(result)
    if report.end_to_end is None:
        raise SystemExit(f"{model.name}: the models could not be compared: {report.warnings}")
    return {
        "cpu_s": cpu,
        "wall_s": time.monotonic() - wall,
        **memory.figures(),
        "model_mib": model.stat().st_size / 2**20,
        "phases": dict(report.phases),
        "memory": dict(report.memory),
        "sqnr_db": [report.end_to_end.before.sqnr_db, report.end_to_end.after.sqnr_db],
        "skipped": [f"{skipped.node}: {skipped.reason}" for skipped in report.skipped],
        "warnings": list(report.warnings),
        "notes": list(report.notes),
        "layers": [
            {
                "name": layer.name,
                "size": {
                    "inputs": layer.inputs,
                    "outputs": layer.outputs,
                    "groups": groups.get(layer.name, 1),
                    "rows": sum(layer.rows),
                    "fitted": layer.rows[0],
                },
                "accepted": layer.accepted,
                "reason": layer.reason,
                "candidate": layer.candidate,
                "improved": layer.improved,
                "held_out": layer.after[1] / layer.before[1] if layer.before[1] else 1.0,
                "seconds": layer.seconds,
                "solve_seconds": layer.solve_seconds,
            }
            for layer in report.layers
        ],
    }


def _groups(model: Path) -> dict[str, int]:
    """The groups of each convolution, by node."""
    nodes = onnx.load(str(model)).graph.node
    return {node.name: int(a.i) for node in nodes for a in node.attribute if a.name == "group"}


def _pass(options: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a sample through the float model, on one thread with onnxruntime's default optimisation."""
    model, samples, _ = _files(options)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
    data = np.load(samples, mmap_mode="r")
    seconds = []
    for index in range(_PASSES):
        start = time.process_time()
        session.run(None, {"input": np.array(data[index % len(data)][None])})
        seconds.append(time.process_time() - start)
    return {"float_pass_s": min(seconds)}


def _rates(_options: argparse.Namespace) -> dict[str, Any]:
    rates = measured_rates()
    return {"product": rates.product, "factor": rates.factor, "bytes": rates.bytes}


_STEPS = {"make": _make, "quantize": _quantize, "pass": _pass, "rates": _rates}


def _row(figures: dict[str, Any]) -> list[str]:
    layers = figures["layers"]
    return [
        figures["network"],
        str(figures["samples"]),
        f"{figures['cpu_s']:.1f}",
        f"{figures['wall_s']:.1f}",
        f"{figures['limit_s']:.1f}",
        f"{figures['cpu_s'] / figures['limit_s']:.1f}",
        f"{figures['peak_rss_mib']:.0f}",
        f"{figures['model_mib']:.1f}",
        f"{sum(layer['accepted'] for layer in layers)} of {len(layers) + len(figures['skipped'])}",
        f"{figures['sqnr_db'][0]:.1f} -> {figures['sqnr_db'][1]:.1f}",
    ]


def _phases(figures: dict[str, Any]) -> str:
    """CPU seconds of each phase, and the most memory until its end."""
    solving = sum(layer["solve_seconds"] for layer in figures["layers"])
    phases = [
        f"{name} {seconds:.1f} s" + (f" ({figures['memory'][name]:.0f} MiB)" if name in figures["memory"] else "")
        for name, seconds in figures["phases"].items()
    ]
    return f"{', '.join(phases)}; solving {solving:.1f} s; one float pass {1000 * figures['float_pass_s']:.0f} ms"


def _print_layers(figures: dict[str, Any], console: Console) -> None:
    table: Table = markdown_table("layer", "K", "O", "rows", "s", "of it solving", "held-out error", "what won")
    for layer in sorted(figures["layers"], key=lambda layer: -layer["seconds"])[:12]:
        size = layer["size"]
        table.add_row(
            layer["name"], str(size["inputs"]), str(size["outputs"]), str(size["rows"]), f"{layer['seconds']:.2f}",
            f"{layer['solve_seconds']:.2f}", f"{layer['held_out']:.3f}", layer["candidate"] or layer["reason"],
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
