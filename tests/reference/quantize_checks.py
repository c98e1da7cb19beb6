"""Whether what comes out of plain quantization is right: valid, near the float model, and the same optimised or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from reference.rounding_noise import Arrays, outputs_of, rms, rounding_noise

from quark.onnx import (
    AlgoConfig,
    Int4Spec,
    Int8Spec,
    Int16Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    QuarkError,
    UInt8Spec,
    UInt16Spec,
    XInt8Spec,
)

__all__ = ["SPECS", "Outcome", "check_quantized"]

_CHANNEL = QuantGranularity.Channel
# By name: the specs, and the bits of activations and weights.
SPECS: Mapping[str, tuple[QLayerConfig, tuple[int, int]]] = {
    "UInt8 Int8": (QLayerConfig(UInt8Spec(), weight=Int8Spec()), (8, 8)),
    "UInt8 Int8 per channel": (QLayerConfig(UInt8Spec(), weight=Int8Spec(quant_granularity=_CHANNEL)), (8, 8)),
    "Int16 Int16": (QLayerConfig(Int16Spec(), weight=Int16Spec()), (16, 16)),
    "UInt8 Int4 per channel": (QLayerConfig(UInt8Spec(), weight=Int4Spec(quant_granularity=_CHANNEL)), (8, 4)),
    "XInt8": (QLayerConfig(XInt8Spec(), weight=XInt8Spec()), (7, 7)),  # up to twice the step
    "Int8 symmetric": (QLayerConfig(Int8Spec(), weight=Int8Spec()), (8, 8)),
}
_FINE, _COARSE = QLayerConfig(UInt16Spec(), weight=Int16Spec()), QLayerConfig(UInt8Spec(), weight=Int8Spec())
_TIMES_NOISE = 8.0
_LEAST = {2: 1e-2, 4: 1e-4, 8: 1e-4}  # of an output's size: another order of additions, by the bytes of its floats
_UNFORESEEN = "please report it"


class _Reader:
    def __init__(self, items: list[Arrays]) -> None:
        self._items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


@dataclass(frozen=True)
class Outcome:
    """How one model went.

    Attributes:
        kind: "passed"; "refused" with an error of ours that says why; "no float": onnxruntime cannot run the float
            model, or it gives no finite numbers; or "failed".
        about: what was wrong.
    """

    kind: str
    about: str = ""


def check_quantized(
    model: onnx.ModelProto, items: list[Arrays], spec: str, *algorithms: AlgoConfig, seed: int = 0
) -> Outcome:
    """Quantize a float model and look at the result on the items that it was calibrated on."""
    try:
        want = outputs_of(model, items)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        return Outcome("no float", str(error))
    if not all(isinstance(o, np.ndarray) and (o.dtype.kind != "f" or np.isfinite(o).all()) for r in want for o in r):
        return Outcome("no float", "an output is no tensor, or not finite")
    layer, bits = SPECS[spec]
    before = model.SerializeToString()
    try:
        result = _quantized(model, items, layer, *algorithms)
    except QuarkError as error:
        return Outcome("failed" if _UNFORESEEN in str(error) else "refused", f"{type(error).__name__}: {error}")
    except Exception as error:
        return Outcome("failed", f"foreign error {type(error).__name__}: {error}")
    if model.SerializeToString() != before:
        return Outcome("failed", "the model that was given is changed")
    try:
        return _checked(model, result, items, want, bits, seed)
    except _Wrong as wrong:
        return Outcome("failed", str(wrong))


class _Wrong(Exception):
    pass


def _quantized(
    model: onnx.ModelProto, items: list[Arrays], layer: QLayerConfig, *algorithms: AlgoConfig
) -> onnx.ModelProto:
    config = QConfig(layer, algo_config=list(algorithms), extra_options={"NumThreads": 1})
    return ModelQuantizer(config).quantize_model(model, None, _Reader(items))


def _checked(
    model: onnx.ModelProto,
    result: onnx.ModelProto,
    items: list[Arrays],
    want: list[list[np.ndarray]],
    bits: tuple[int, int],
    seed: int,
) -> Outcome:
    _check_valid(model, result)
    limits = [_LEAST.get(outputs[0].dtype.itemsize, 0.0) * _size(outputs) + 1e-6 for outputs in zip(*want, strict=True)]
    runs = []
    for optimise in (False, True):
        try:
            have = outputs_of(result, items, optimise=optimise)
        except Exception as error:
            raise _Wrong(f"onnxruntime, {optimise=}: {error}") from error
        _check_alike(want, have)
        runs.append(have)
    errors = [_errors(want, runs[0]), _errors(want, runs[1]), _errors(runs[0], runs[1])]
    worst = [max(of) for of in zip(*errors, strict=True)]
    if all(error <= limit for error, limit in zip(worst, limits, strict=True)):
        return Outcome("passed")
    for draw in range(3):
        try:
            noise = rounding_noise(model, items, bits=bits, seed=1000 * seed + draw)
        except Exception:  # onnx infers other shapes than onnxruntime makes
            break
        limits = [max(limit, _TIMES_NOISE * n) for limit, n in zip(limits, noise, strict=True)]
        if all(error <= limit for error, limit in zip(worst, limits, strict=True)):
            return Outcome("passed")
    return _by_finer_steps(model, items, want, worst, limits, bits, [max(of) for of in errors])


def _by_finer_steps(
    model: onnx.ModelProto,
    items: list[Arrays],
    want: list[list[np.ndarray]],
    worst: list[float],
    limits: list[float],
    bits: tuple[int, int],
    errors: list[float],
) -> Outcome:
    """Rounding gets less with finer steps; what is wrong stays."""
    sizes = [_size(outputs) for outputs in zip(*want, strict=True)]
    said = f"error {worst} of {sizes} beyond {limits} (as it is, optimised, between: {errors})"
    other = _COARSE if bits == (16, 16) else _FINE
    errors_of_other = _errors(want, outputs_of(_quantized(model, items, other), items))
    coarse, fine = (errors_of_other, worst) if bits == (16, 16) else (worst, errors_of_other)
    said += f"; by other steps {errors_of_other}"
    over = [i for i, (error, limit) in enumerate(zip(worst, limits, strict=True)) if error > limit]
    gone = all(fine[i] < coarse[i] / 1000 for i in over)  # rounding alone took another branch of an If
    if gone or all(fine[i] < coarse[i] / 10 and worst[i] < sizes[i] for i in over):
        return Outcome("passed", "noisy: " + said)
    return Outcome("failed", said)


def _check_valid(model: onnx.ModelProto, result: onnx.ModelProto) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return  # nor is what was given
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _Wrong(f"checker: {error}") from error


def _check_alike(want: list[list[np.ndarray]], have: list[list[np.ndarray]]) -> None:
    for of_want, of_have in zip(want, have, strict=True):
        shapes = [[(o.shape, o.dtype) for o in outputs] for outputs in (of_want, of_have)]
        if shapes[0] != shapes[1]:
            raise _Wrong(f"outputs are {shapes[1]}, not {shapes[0]}")


def _errors(want: list[list[np.ndarray]], have: list[list[np.ndarray]]) -> list[float]:
    """RMS of the difference of each float output; 0 of others."""
    pairs = zip(zip(*want, strict=True), zip(*have, strict=True), strict=True)
    return [
        rms([h.astype(np.float64) - w for w, h in zip(*pair, strict=True)]) if pair[0][0].dtype.kind == "f" else 0.0
        for pair in pairs
    ]


def _size(outputs: tuple[np.ndarray, ...]) -> float:
    return rms(list(outputs)) if outputs[0].dtype.kind == "f" else 0.0
