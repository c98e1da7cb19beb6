"""Small seeded float models as exporters write them: activations and normalizations spelled out as graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from small_models import Weights, build, scaled

NUMBERS = {
    "half": 0.5, "one": 1.0, "two": 2.0, "three": 3.0, "zero": 0.0, "six": 6.0, "root2": 2**0.5, "epsilon": 1e-5,
}  # fmt: skip


def silu(x: str, y: str) -> str:
    """PyTorch's, of any opset."""
    return f"{y}_s = Sigmoid({x}) [{y}_end] {y} = Mul({x}, {y}_s)"


def hard_swish(x: str, y: str) -> str:
    """PyTorch's before opset 14, and Paddle's."""
    clip = f"{y}_a = Add({x}, three) {y}_c = Clip({y}_a, zero, six)"
    return f"{clip} {y}_m = Mul({x}, {y}_c) [{y}_end] {y} = Div({y}_m, six)"


def hard_sigmoid(x: str, y: str) -> str:
    """PyTorch's before opset 14."""
    return f"{y}_a = Add({x}, three) {y}_c = Clip({y}_a, zero, six) [{y}_end] {y} = Div({y}_c, six)"


def gelu(x: str, y: str) -> str:
    """PyTorch's before opset 20."""
    return (
        f"{y}_d = Div({x}, root2) {y}_e = Erf({y}_d) {y}_a = Add({y}_e, one) {y}_m = Mul({x}, {y}_a) "
        f"[{y}_end] {y} = Mul({y}_m, half)"
    )


def layer_normalization(x: str, y: str, parameters: str) -> str:
    """PyTorch's before opset 17."""
    return (
        f"{y}_m = ReduceMean<axes=[-1]>({x}) {y}_d = Sub({x}, {y}_m) {y}_p = Pow({y}_d, two) "
        f"{y}_v = ReduceMean<axes=[-1]>({y}_p) {y}_e = Add({y}_v, epsilon) {y}_q = Sqrt({y}_e) "
        f"{y}_n = Div({y}_d, {y}_q) {y}_s = Mul({y}_n, {parameters}_w) [{y}_end] {y} = Add({y}_s, {parameters}_b)"
    )


def exported(text: str, *, opset: int, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form, with those of the `NUMBERS` that it reads."""
    words = set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return build(text, opset=opset, **{k: v for k, v in NUMBERS.items() if k in words}, **constants)


def _inverted_residual(
    activation: Callable[[str, str], str], gate: Callable[[str, str], str], *, seed: int
) -> onnx.ModelProto:
    w = Weights(seed)
    a, b, c = (w.gains(n) ** 0.5 for n in (16, 16, 8))
    return exported(
        f"""(float[N,8,8,8] x) => (float[N,10] y) {{
            [expand] t1 = Conv(x, expand_w, expand_b) {activation("t1", "a1")}
            [depthwise] t2 = Conv<group=16, pads=[1,1,1,1]>(a1, depthwise_w, depthwise_b) {activation("t2", "a2")}
            pooled = GlobalAveragePool(a2)
            [squeeze] t3 = Conv(pooled, squeeze_w, squeeze_b) {activation("t3", "a3")}
            [excite] t4 = Conv(a3, excite_w, excite_b) {gate("t4", "a4")}
            gated = Mul(a2, a4)
            [project] t5 = Conv(gated, project_w, project_b)
            sum = Add(t5, x)
            [last] t6 = Conv(sum, last_w, last_b) {activation("t6", "a6")}
            mean = GlobalAveragePool(a6)
            flat = Flatten(mean)
            [classes] y = Gemm<transB=1>(flat, classes_w, classes_b)
        }}""",
        opset=13,
        expand_w=scaled(w.conv(16, 8, 1, 1), 2 * a), expand_b=w.bias(16) * a,
        depthwise_w=scaled(w.conv(16, 1, 3, 3), 2 * b / a), depthwise_b=w.bias(16) * b,
        squeeze_w=scaled(w.conv(8, 16, 1, 1, gains=b), 4 * c), squeeze_b=w.bias(8) * c,
        excite_w=w.conv(16, 8, 1, 1, gains=c) * 4, excite_b=w.bias(16),
        project_w=w.conv(8, 16, 1, 1, gains=b) * 2, project_b=w.bias(8),
        last_w=w.conv(16, 8, 1, 1) * 2, last_b=w.bias(16),
        classes_w=w.conv(10, 16) * 3, classes_b=w.bias(10),
    )  # fmt: skip


def efficientnet_block(*, seed: int = 0) -> onnx.ModelProto:
    """Expansion, depthwise convolution, squeeze and excitation, all with SiLU: x (N, 8, 8, 8) to y (N, 10)."""
    return _inverted_residual(silu, lambda x, y: f"{y} = Sigmoid({x})", seed=seed)


def mobilenet_v3_block(*, seed: int = 1) -> onnx.ModelProto:
    """It has HardSwish in place of SiLU, and HardSigmoid as the gate: x (N, 8, 8, 8) to y (N, 10)."""
    return _inverted_residual(hard_swish, hard_sigmoid, seed=seed)


def bert_block(*, seed: int = 2, opset: int = 13) -> onnx.ModelProto:
    """Attention and a Gelu between LayerNormalizations: x (N, 6, 16) to y (N, 6, 10)."""
    w = Weights(seed)
    a, b, c = (w.gains(16) for _ in range(3))
    return exported(
        f"""(float[N,6,16] x) => (float[N,6,10] y) {{
            {layer_normalization("x", "n1", "norm1")}
            [query] q = MatMul(n1, query_w)
            [key] k = MatMul(n1, key_w)
            [value] v = MatMul(n1, value_w)
            kt = Transpose<perm=[0,2,1]>(k)
            alike = MatMul(q, kt)
            attention = Softmax(alike)
            mixed = MatMul(attention, v)
            [out] o = MatMul(mixed, out_w)
            r1 = Add(x, o)
            {layer_normalization("r1", "n2", "norm2")}
            [up] u = MatMul(n2, up_w) ub = Add(u, up_b)
            {gelu("ub", "g")}
            [down] d = MatMul(g, down_w)
            r2 = Add(r1, d)
            {layer_normalization("r2", "n3", "norm3")}
            [head] y = MatMul(n3, head_w)
        }}""",
        opset=opset,
        norm1_w=a, norm1_b=w.bias(16) * a, norm2_w=b, norm2_b=w.bias(16) * b, norm3_w=c, norm3_b=w.bias(16) * c,
        query_w=w.conv(16, 16, gains=a).T / 2, key_w=w.conv(16, 16, gains=a).T / 2, value_w=w.conv(16, 16, gains=a).T,
        out_w=w.conv(16, 16).T, up_w=w.conv(32, 16, gains=b).T * 2, up_b=w.bias(32), down_w=w.conv(16, 32).T,
        head_w=w.conv(10, 16, gains=c).T,
    )  # fmt: skip
