"""The bound: the least time that finetuning from moments can need on this machine.

Whatever the implementation, it has to run the float model and the Q/DQ model over the calibration data once,
and to form the moments G = E[x x'] and C = E[y x'] of every tuned layer. The bound is the time of these three
with the tools at hand: onnxruntime for the passes and BLAS for the moments.

    python benchmarks/bound.py --case mobilenet_v1 --samples 100 --quantized plain.onnx

prints `BOUND {json}`: float_pass_s, qdq_pass_s, moments_s, bound_s, the flops and the rate.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import cases
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

BATCHES = (1, 8, 32)
_TIMES = 3  # every pass is timed so often; the best counts
_LEAST = 0.5  # seconds that the measurement of the matrix product takes at least


@dataclass(frozen=True)
class LayerSize:
    """A layer as a matrix product. rows: output positions of all samples; K inputs, O outputs per group."""

    name: str
    rows: int
    inputs: int
    outputs: int
    groups: int

    @property
    def moment_flops(self) -> int:
        """G is symmetric, so half of it is computed: 2 rows K (K/2 + O), for every group."""
        return self.groups * self.rows * self.inputs * (self.inputs + 2 * self.outputs)


def layer_sizes(model: onnx.ModelProto, input_shape: tuple[int, ...]) -> list[LayerSize]:
    """Sizes of every Conv, ConvTranspose, Gemm and MatMul by a constant matrix, in a float model fed with input_shape.

    Raises:
        ValueError: the model has not exactly one input, or shape inference leaves a layer's shape open.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    constants = {i.name for i in fixed.graph.initializer}
    constants |= {name for n in fixed.graph.node if n.op_type == "Constant" for name in n.output}
    inputs = [i for i in fixed.graph.input if i.name not in constants]
    if len(inputs) != 1:
        raise ValueError(f"the bound is made for models with one input, this one has {len(inputs)}")
    for dim, size in zip(inputs[0].type.tensor_type.shape.dim, input_shape, strict=True):
        dim.dim_value = size
    graph = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)

    def shape(name: str) -> tuple[int, ...]:
        found = shapes.get(name, ())
        if not found or 0 in found:
            raise ValueError(f"shape inference leaves {name!r} open: {found}")
        return found

    return [
        _layer_size(node, shape(node.input[1]), shape(node.output[0]))
        for node in graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
        and node.input[1] in constants
        and len(shape(node.input[1])) > 1
    ]


def _layer_size(node: onnx.NodeProto, weight: tuple[int, ...], output: tuple[int, ...]) -> LayerSize:
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Conv":
        groups = attributes.get("group", 1)
        return LayerSize(node.name, math.prod(output) // output[1], math.prod(weight[1:]), weight[0] // groups, groups)
    if node.op_type == "ConvTranspose":  # with a stride s an output sees every s-th tap
        groups, kernel = attributes.get("group", 1), weight[2:]
        strides = attributes.get("strides", [1] * len(kernel))
        seen = math.prod(max(1, taps // stride) for taps, stride in zip(kernel, strides, strict=True))
        inputs = weight[0] // groups * seen
        return LayerSize(node.name, math.prod(output) // output[1], inputs, weight[1], groups)
    if node.op_type == "Gemm" and attributes.get("transB"):
        weight = weight[::-1]
    groups = math.prod(weight[:-2])  # of a MatMul with a stack of matrices
    return LayerSize(node.name, math.prod(output) // (weight[-1] * groups), weight[-2], weight[-1], groups)


def sgemm_rate(n: int = 1024) -> float:
    """Flops per second of NumPy's float32 product of two n x n matrices, all cores: the best of many."""
    a, b = np.random.default_rng(0).standard_normal((2, n, n), dtype=np.float32)
    out = np.empty_like(a)
    best, end = math.inf, time.perf_counter() + _LEAST
    while time.perf_counter() < end:
        start = time.perf_counter()
        np.matmul(a, b, out=out)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def pass_seconds(model: str, x: npt.NDArray[np.float32], *, optimise: bool) -> tuple[float, int]:
    """Seconds of the best pass of model over x on all cores, session made before, and its batch size."""
    options = ort.SessionOptions()
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def seconds(batch: int) -> float:
        start = time.perf_counter()
        for i in range(0, len(x), batch):
            session.run(None, {name: x[i : i + batch]})
        return time.perf_counter() - start

    for batch in BATCHES:  # onnxruntime's arena grows at first
        session.run(None, {name: x[:batch]})
    return min((seconds(batch), batch) for batch in BATCHES for _ in range(_TIMES))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, default=cases.DATA, help="folder with the models and data of cases.py")
    p.add_argument("--case", required=True)
    p.add_argument("--samples", type=int, required=True)
    p.add_argument("--quantized", required=True, help="Q/DQ model of the case")
    a = p.parse_args()
    case = cases.load(a.case, a.data)
    x = case.calib[: a.samples]
    float_pass, float_batch = pass_seconds(str(case.model), x, optimise=True)
    qdq_pass, qdq_batch = pass_seconds(a.quantized, x, optimise=False)
    sample_flops = sum(s.moment_flops for s in layer_sizes(onnx.load(case.model), (1, *x.shape[1:])))
    rate = sgemm_rate()
    moments = sample_flops * len(x) / rate
    result = {
        "bound_s": round(float_pass + qdq_pass + moments, 3),
        "float_pass_s": round(float_pass, 3),
        "float_batch": float_batch,
        "qdq_pass_s": round(qdq_pass, 3),
        "qdq_batch": qdq_batch,
        "moments_s": round(moments, 3),
        "moments_gflop": round(sample_flops * len(x) / 1e9, 1),
        "sgemm_gflop_per_s": round(rate / 1e9, 1),
    }
    print("BOUND " + json.dumps(result))


if __name__ == "__main__":
    main()
