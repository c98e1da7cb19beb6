"""Layers with data for the gradient loops: every kind of layer and of input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from reference.conv_rows import Conv, ConvTranspose, output_rows
from reference.fake_quant import dequantize, quantize
from reference.least_squares import QuantizedLayer
from reference.output_stage import Stage
from reference.training import Batches, Options, Rows, SplitMix64, is_held_out

from quark.onnx import _core

ONE = _core.ThreadPool(1)
HOLDOUT = 5


@dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """x as it is fed; conv None: x (samples, ..., K), y (samples, ..., O). x_float: what the float graph feeds."""

    layer: QuantizedLayer
    x: np.ndarray
    y: np.ndarray
    conv: Conv | None = None
    x_scale: float = 1.0
    x_zero_point: int = 0
    holdout: int = HOLDOUT
    x_float: np.ndarray | None = None
    stage: Stage | None = None

    @property
    def real_x(self) -> np.ndarray:
        return self.x if self.x.dtype == np.float32 else dequantize(self.x, self.x_scale, self.x_zero_point)

    @property
    def rows(self) -> Rows:
        return self.rows_of(self.real_x, self.y)

    def rows_of(self, x: np.ndarray, y: np.ndarray) -> Rows:
        n, x, y, stage = len(x), x.astype(np.float64), y.astype(np.float64), self.stage or Stage()
        if self.conv is None:
            parts = (x.reshape(n, 1, -1, x.shape[-1]), y.reshape(n, 1, -1, y.shape[-1]))
            return Rows(*parts, sizes=y.shape[1:-1], outputs_first=False, stage=stage)
        groups = self.conv.groups
        both = (self.conv.rows(x), output_rows(y, groups))
        parts = (r.reshape(groups, n, -1, r.shape[-1]).transpose(1, 0, 2, 3) for r in both)
        return Rows(*parts, sizes=y.shape[2:], outputs_first=True, stage=stage)

    def batches(self, options: Options) -> Batches:
        """The rows of a step: every input as it is fed with probability drop_ratio, else the float graph's."""

        def mixed(step: int, chosen: list[int]) -> Rows:
            x = self.real_x[chosen]
            for place, sample in enumerate(chosen):
                random = SplitMix64.stream(options.seed, step * options.batch_size + place + 1)
                for at in np.ndindex(x.shape[1:]):
                    if (random.next() >> 11) / 2**53 >= options.drop_ratio:
                        x[(place, *at)] = self.x_float[(sample, *at)]
            return self.rows_of(x, self.y[chosen])

        return mixed

    @property
    def sets(self) -> list[list[int]]:
        """Fitted and held-out samples."""
        held_out = is_held_out(len(self.x), self.holdout)
        return [np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()]

    @property
    def judging(self) -> list[int]:
        """The held-out samples; with few samples the fitted ones."""
        fitted, held_out = self.sets
        return held_out or fitted

    def scaled(self, factor: float) -> TrainingCase:
        """All activations by `factor`."""
        f = np.float32(factor)
        layer = replace(self.layer, bias=self.layer.bias * f, bias_scale=self.layer.bias_scale * f)
        return replace(self, x=self.x * f, y=self.y * f, layer=layer)

    def core(self, batches: Sequence[int] | None = None) -> _core.TrainingData:
        """batches: how many samples are added at a time."""
        rows, inputs = self.layer.weight.shape
        options: dict[str, Any] = {}
        if (c := self.conv) is not None:
            options = {"groups": c.groups, "conv": c.core}
        data = _core.TrainingData(
            inputs,
            rows // options.get("groups", 1),
            holdout=self.holdout,
            x_scale=self.x_scale,
            x_zero_point=self.x_zero_point,
            stage=self.stage and self.stage.core,
            **options,
        )
        ends = np.cumsum([len(self.x)] if batches is None else batches)
        assert ends[-1] == len(self.x)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            x_float = None if self.x_float is None else self.x_float[start:end]
            data.add(self.x[start:end], self.y[start:end], x_float)
        return data


QUANTIZED_LAYER = (
    "weight", "weight_q", "weight_scale", "weight_zero_point", "qmin", "qmax", "bias", "bias_scale", "bias_qmin",
    "bias_qmax",
)  # fmt: skip


def start_of(layer: QuantizedLayer, **changed: Any) -> _core.QuantizedLayer:
    """The layer as the core takes it. changed: arguments in place of the ones that follow from it."""
    values = (
        layer.weight, layer.weight_q, layer.scale, layer.zero_point, layer.qmin, layer.qmax, layer.bias,
        layer.bias_scale, -(2**31), 2**31 - 1,
    )  # fmt: skip
    return _core.QuantizedLayer(**dict(zip(QUANTIZED_LAYER, values, strict=True)) | changed)


def train(
    data: _core.TrainingData,
    layer: QuantizedLayer,
    options: Options,
    *,
    adaround: bool,
    pool: _core.ThreadPool = ONE,
    **changed: Any,
) -> dict[str, Any]:
    """The core's answer. changed: arguments in place of the ones that follow from layer and options."""
    start = start_of(layer, **{name: changed.pop(name) for name in QUANTIZED_LAYER if name in changed})
    offered = changed.pop("offered", None)
    named: dict[str, Any] = {"method": "adaround" if adaround else "adaquant", **vars(options)}
    named["beta_start"], named["beta_end"] = named.pop("beta_range")
    named["step_positions"] = 0
    return data.train(start, _core.GradientOptions(**named | changed), pool, offered=offered)


def quantized_layer(seed: int, *, rows: int, inputs: int, with_bias: bool = True, blocks: int = 1) -> QuantizedLayer:
    """4 bits, the nearest integers. The largest weights lie outside of the grid, and none on the edge of its range.

    blocks: scales per row.
    """
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, inputs)).astype(np.float32)
    symmetric = bool(rng.integers(2))
    qmin, qmax = (-7, 7) if symmetric else (0, 15)
    scale = (np.abs(weight.reshape(rows * blocks, -1)).max(axis=1) / 7.7).astype(np.float32)
    zero_point = np.zeros(scale.shape, np.int32) if symmetric else rng.integers(6, 9, scale.shape).astype(np.int32)
    grids = zip(weight.reshape(rows * blocks, -1), scale, zero_point, strict=True)
    shape = (rows,) if blocks == 1 else (rows, blocks)
    bias_scale = (scale[::blocks] / 64).astype(np.float32)
    bias = (bias_scale * np.rint(rng.standard_normal(rows) / bias_scale)).astype(np.float32)
    return QuantizedLayer(
        weight=weight,
        weight_q=np.stack([quantize(w, s, z, qmin, qmax) for w, s, z in grids]).reshape(weight.shape),
        scale=scale.reshape(shape),
        zero_point=zero_point.reshape(shape),
        qmin=qmin,
        qmax=qmax,
        bias=bias if with_bias else None,
        bias_scale=bias_scale if with_bias else None,
    )


def with_targets(
    seed: int, layer: QuantizedLayer, x: np.ndarray, *, outputs: int, conv: Conv | None = None
) -> TrainingCase:
    """y: what the float layer gives for slightly other inputs."""
    rng = np.random.default_rng(seed)
    seen = (x + rng.normal(0.05, 0.1, x.shape)).astype(np.float64)
    bias = 0 if layer.bias is None else layer.bias.astype(np.float64)
    if conv is None:
        y = seen @ layer.weight.T + bias
    else:
        rows = conv.rows(seen)  # (groups, samples * positions, K)
        weight = layer.weight.reshape(conv.groups, outputs, -1)
        out = np.einsum("grk,gok->rgo", rows, weight).reshape(len(x), -1, conv.groups * outputs) + bias
        sizes = [conv.outputs(axis, size) for axis, size in enumerate(x.shape[2:])]
        y = out.transpose(0, 2, 1).reshape(len(x), -1, *sizes)
    return TrainingCase(layer=layer, x=x, y=np.ascontiguousarray(y, np.float32), conv=conv)


def correlated(seed: int, *shape: int) -> np.ndarray:
    """Neighbours along every axis but the first are alike, so that rounding weights together pays."""
    x = np.random.default_rng(seed).standard_normal(shape)
    for axis in range(1, len(shape)):
        x = x + 0.8 * np.roll(x, 1, axis)
    return x.astype(np.float32)


def matrix_case(
    seed: int,
    *,
    samples: int = 40,
    positions: int = 0,
    inputs: int = 12,
    outputs: int = 5,
    with_bias: bool = True,
    blocks: int = 1,
) -> TrainingCase:
    layer = quantized_layer(seed, rows=outputs, inputs=inputs, with_bias=with_bias, blocks=blocks)
    shape = (samples, positions, inputs) if positions else (samples, inputs)
    return with_targets(seed, layer, correlated(seed, *shape), outputs=outputs)


def conv_case(
    seed: int,
    *,
    sizes: tuple[int, ...],
    channels: int,
    outputs: int,
    kernel: tuple[int, ...],
    groups: int = 1,
    samples: int = 12,
    strides: tuple[int, ...] | None = None,
    dilations: tuple[int, ...] | None = None,
    pads: tuple[int, ...] | None = None,
) -> TrainingCase:
    """channels and outputs are per group."""
    ones = (1,) * len(sizes)
    conv = Conv(
        kernel=kernel,
        strides=strides or ones,
        dilations=dilations or ones,
        pads=pads or (0, 0) * len(sizes),
        auto_pad="NOTSET",
        groups=groups,
    )
    return case_of(seed, conv, sizes=sizes, channels=channels, outputs=outputs, samples=samples)


def case_of(
    seed: int, conv: Conv, *, sizes: tuple[int, ...], channels: int, outputs: int, samples: int = 12
) -> TrainingCase:
    """channels and outputs are per group."""
    layer = quantized_layer(seed, rows=conv.groups * outputs, inputs=channels * int(np.prod(conv.kernel)))
    x = correlated(seed, samples, conv.groups * channels, *sizes)
    return with_targets(seed, layer, x, outputs=outputs, conv=conv)


def in_8_bits(case: TrainingCase, dtype: type[np.unsignedinteger] | type[np.signedinteger]) -> TrainingCase:
    """Return the layer on an input that is fed before its DequantizeLinear."""
    grid = np.iinfo(dtype)
    scale, zero_point = float(np.float32(np.ptp(case.x) / 255)), int(grid.min) + 110
    x = quantize(case.x, scale, zero_point, grid.min, grid.max).astype(dtype)
    return replace(case, x=x, x_scale=scale, x_zero_point=zero_point)


def make_cases() -> dict[str, TrainingCase]:
    dense = conv_case(1, sizes=(8, 8), channels=3, outputs=4, kernel=(3, 3), pads=(1, 1, 1, 1))
    transposed = ConvTranspose(
        kernel=(3, 2),
        strides=(2, 2),
        dilations=(1, 2),
        pads=(1, 0, 0, 1),
        auto_pad="NOTSET",
        groups=2,
        output_padding=(1, 0),
        output_shape=None,
    )
    return {
        "conv 2-D": dense,
        "stride, pads, dilation": conv_case(
            2, sizes=(9, 8), channels=2, outputs=5, kernel=(3, 2), strides=(2, 1), dilations=(1, 2), pads=(1, 0, 2, 1)
        ),
        "depthwise": conv_case(3, sizes=(7, 7), channels=1, outputs=1, groups=6, kernel=(3, 3), pads=(1, 1, 1, 1)),
        "depthwise, two outputs": conv_case(4, sizes=(7, 6), channels=1, outputs=2, groups=3, kernel=(3, 3)),
        "grouped": conv_case(5, sizes=(6, 6), channels=2, outputs=3, groups=2, kernel=(3, 3), pads=(1, 1, 1, 1)),
        "normalization": norm_case(13),
        "conv 1-D": conv_case(6, sizes=(20,), channels=3, outputs=4, kernel=(5,), strides=(2,), pads=(2, 1)),
        "conv 3-D": conv_case(13, sizes=(4, 5, 4), channels=2, outputs=3, kernel=(2, 3, 2), pads=(0, 1, 1, 0, 1, 0)),
        "transposed": case_of(14, transposed, sizes=(6, 5), channels=2, outputs=3),
        "more positions than a unit": conv_case(7, sizes=(25, 27), channels=2, outputs=3, kernel=(2, 2)),
        "gemm": matrix_case(8),
        "gemm, many samples": matrix_case(9, samples=90),
        "matmul": matrix_case(10, samples=20, positions=7),
        "matmul without bias": matrix_case(11, samples=20, positions=7, with_bias=False),
        "scales of blocks": matrix_case(15, blocks=3),
        "scales of small blocks": matrix_case(16, samples=20, positions=3, blocks=4),
        "uint8 conv": in_8_bits(dense, np.uint8),
        "int8 conv": in_8_bits(dense, np.int8),
        "uint8 gemm": in_8_bits(matrix_case(12), np.uint8),
    }


def norm_case(seed: int, *, elements: int = 12, samples: int = 12) -> TrainingCase:
    """A normalization: one input and one weight per output, one scale for all weights."""
    layer = quantized_layer(seed, rows=1, inputs=elements)  # its row is the weight of each element
    column = {
        name: np.ascontiguousarray(getattr(layer, name).reshape(elements, 1)) for name in ("weight", "weight_q")
    } | {name: np.repeat(getattr(layer, name), elements) for name in ("scale", "zero_point", "bias", "bias_scale")}
    x = correlated(seed, samples, elements, 19)
    conv = Conv(kernel=(1,), strides=(1,), dilations=(1,), pads=(0, 0), auto_pad="NOTSET", groups=elements)
    return with_targets(seed, replace(layer, **column), x, outputs=1, conv=conv)


CASES = make_cases()
