"""One layer in the core: what least squares costs and reaches, by inputs x outputs x rows.

    python benchmarks/layer_solve.py 1152x128x20384 3072x768x5122
    python benchmarks/layer_solve.py --core build/old/_core.cpython-311-x86_64-linux-gnu.so 3072x768x5122

--core takes the extension from another build, so that two versions stand side by side; everything else is the same.
Inputs are bytes that share a part, as activations after a Relu do, with a spread of channels; weights are random with a
spread of outputs, on 8 (or --bits) bits with one scale for the tensor. A fifth of the rows is held out. Each layer runs
in a process of its own.

Before its time counts, a result is checked: the errors that the core reports are those that NumPy computes from the
moments, and unseen rows are not worse than at the start.

OpenBLAS's variables OPENBLAS_CORETYPE and OPENBLAS_L2_SIZE are removed: the kernels are those that users get.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from fresh_process import run
from numpy.typing import NDArray

_HOLDOUT = 5
_UNSEEN = 2048
_DAMPING = (1e-3, 1e-2, 1e-1, 1.0)


def main() -> None:
    """Print one line per layer."""
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(name, None)
    options = _options()
    if options.alone:
        print("LAYER", json.dumps(_measure(options)), flush=True)
        return
    print(f"{'K x O x rows':>18} {'feed':>7} {'solve':>7} {'RSS MiB':>8} {'held out':>9} {'unseen':>9}  won")
    for layer in options.layers:
        command = [sys.executable, str(Path(__file__).resolve()), "--alone", layer, *_passed_on(options)]
        found = run(command, cwd=Path(__file__).parent)
        print(
            f"{layer:>18} {found['feed']:7.2f} {found['solve']:7.2f} {found['rss']:8.0f} {found['held_out']:9.4f} "
            f"{found['unseen']:9.4f}  {found['won']}, {found['improved']} of {found['outputs']} outputs"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", nargs="+", help="inputs x outputs x rows, such as 3072x768x5122")
    parser.add_argument("--core", type=Path, help="the extension module of another build")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--free", action="store_true", help="AdaQuant's box in place of AdaRound's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _passed_on(options: argparse.Namespace) -> list[str]:
    words = ["--bits", str(options.bits), "--threads", str(options.threads), "--seed", str(options.seed)]
    return words + (["--free"] if options.free else []) + (["--core", str(options.core)] if options.core else [])


def _core(path: Path | None) -> ModuleType:
    from quark.onnx import _core

    if path is None:
        return _core
    spec = importlib.util.spec_from_file_location("quark_onnx._core", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _data(rng: np.random.Generator, shared: NDArray[np.float32], rows: int) -> NDArray[np.uint8]:
    """(rows, K) bytes: a tenth as many parts as inputs are shared, and each input has noise of its own."""
    parts, inputs = shared.shape
    values = rng.standard_normal((rows, parts), np.float32) @ shared / np.sqrt(np.float32(parts))
    values += 0.5 * rng.standard_normal((rows, inputs), np.float32)
    spread = np.exp(0.5 * np.random.default_rng(9).standard_normal(inputs)).astype(np.float32)
    return np.clip(np.rint(values * spread * 40), 0, 255).astype(np.uint8)


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    inputs, outputs, rows = (int(size) for size in options.layers[0].split("x"))
    core = _core(options.core)
    rng = np.random.default_rng(options.seed)
    shared = rng.standard_normal((max(1, inputs // 10), inputs), np.float32)
    spread = np.exp(0.5 * rng.standard_normal((outputs, 1))).astype(np.float32)
    weight = rng.standard_normal((outputs, inputs), np.float32) * spread * np.float32(0.05 / np.sqrt(inputs))
    x, unseen = _data(rng, shared, rows), _data(rng, shared, _UNSEEN)
    pool = core.ThreadPool(options.threads)
    layer = core.Layer(inputs, outputs, rows, rows, holdout=_HOLDOUT, x_scale=1.0, x_zero_point=0)
    before = time.process_time()
    layer.feed(x, x.astype(np.float32) @ weight.T, pool)
    fed = time.process_time()
    qmax = 2 ** (options.bits - 1) - 1
    scale = np.float32(np.abs(weight).max() / qmax)
    start = np.clip(np.rint(weight / scale), -qmax - 1, qmax).astype(np.int32)
    began = time.process_time()
    found = _solve(core, layer, weight, start, scale, qmax, options.free, pool)
    solved = time.process_time()
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    error = _error(unseen, scale * found["weight"] - weight, scale * found["bias"])
    at_start = _error(unseen, scale * start - weight, np.zeros(outputs))
    _check(layer, pool, found, weight, scale, start)
    if error > at_start:
        raise SystemExit(f"unseen rows are worse: {error} for {at_start}")
    return {
        "feed": fed - before,
        "solve": solved - began,
        "rss": rss,
        "held_out": found["after"][1] / found["before"][1],
        "unseen": error / at_start,
        "won": found["candidate"],
        "improved": found["improved"],
        "outputs": outputs,
    }


def _solve(core: Any, layer: Any, weight: Any, start: Any, scale: Any, qmax: int, free: bool, pool: Any) -> Any:
    outputs = len(weight)
    arrays = (weight, start, np.full(outputs, scale), np.zeros(outputs, np.int32))
    grid = {
        "qmin": -qmax - 1,
        "qmax": qmax,
        "bias": np.zeros(outputs, np.float32),
        "bias_scale": np.full(outputs, scale),
        "bias_qmin": -(2**31),
        "bias_qmax": 2**31 - 1,
    }
    how = {"update_bias": True, "free": free, "damping": np.array(_DAMPING), "max_sweeps": 20}
    if hasattr(core, "QuantizedLayer"):
        return layer.least_squares(core.QuantizedLayer(*arrays, **grid), pool, **how)
    return layer.least_squares(*arrays, **grid, **how, pool=pool)  # as it was before December 2026


def _error(x: NDArray[np.uint8], change: NDArray[np.float64], bias: NDArray[np.float64]) -> float:
    return float(np.sum(np.mean((x.astype(np.float32) @ change.T.astype(np.float32) + bias) ** 2, axis=0)))


def _check(layer: Any, pool: Any, found: Any, weight: Any, scale: Any, start: Any) -> None:
    """What the core reports is what the moments say: E |d x + b|^2 with d = W^ - W, as y = W x."""
    for held_out in (False, True):
        _, gram, _, mean_x, *_ = layer.moments(pool, held_out)
        for name, q, bias in (("before", start, 0 * found["bias"]), ("after", found["weight"], found["bias"])):
            d, b = scale * q.astype(np.float64) - weight, scale * bias.astype(np.float64)
            error = np.sum((d @ gram[0]) * d) + 2 * np.sum(b * (d @ mean_x[0])) + np.sum(b * b)
            if abs(error - found[name][held_out]) > 2e-3 * found["before"][held_out]:
                raise SystemExit(f"{name}: the core says {found[name][held_out]}, the moments {error}")


if __name__ == "__main__":
    main()
