"""Small seeded float models, their data, and readers, for the tests of the public API.

The output channels of their weights have very different ranges, so that 8 bits per tensor lose much of the
small ones: finetune has something to win.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from quark.onnx.report.layer_report import LayerReport

Arrays = dict[str, np.ndarray]


class Reader:
    """A calibration data reader over arrays that share their first axis.

    Args:
        arrays: by input name.
        batch: samples per item; the last item holds what is left.
        reuse: give every item in the same memory, as readers with a preallocated buffer do.
    """

    def __init__(self, arrays: Arrays, *, batch: int = 1, reuse: bool = False) -> None:
        self._items = self._slices(arrays, batch, reuse)

    @staticmethod
    def _slices(arrays: Arrays, batch: int, reuse: bool) -> Iterator[Arrays]:
        buffers = {name: np.empty_like(array[:batch]) for name, array in arrays.items()}
        for start in range(0, len(next(iter(arrays.values()))), batch):
            item = {name: array[start : start + batch] for name, array in arrays.items()}
            if reuse:
                for name, array in item.items():
                    buffers[name][: len(array)] = array
                    item[name] = buffers[name][: len(array)]
            yield item

    def get_next(self) -> Arrays | None:
        return next(self._items, None)


def build(text: str, *, opset: int = 17, **constants: np.ndarray | float) -> onnx.ModelProto:
    """A model from ONNX's text form; `[name]` before a node names it. Float constants become float32."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> g {text}')
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model, full_check=True)
    return model


class Weights:
    """Seeded weights: fan-in scaled, and each output channel multiplied by a gain of its own, 1/8 to 8."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def gains(self, channels: int) -> np.ndarray:
        return np.exp2(self._random.uniform(-3, 3, channels))

    def conv(self, *shape: int, gains: np.ndarray | float = 1.0) -> np.ndarray:
        """(outputs, inputs, ...) of a layer whose inputs come with gains: these are taken out again."""
        weight = self._random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        inverse = np.reshape(1 / np.broadcast_to(gains, shape[1]), (1, -1) + (1,) * (len(shape) - 2))
        return weight * inverse

    def bias(self, channels: int) -> np.ndarray:
        return 0.2 * self._random.standard_normal(channels)


def scaled(weight: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """A weight (outputs, ...) with its output channels multiplied."""
    return weight * gains.reshape((-1,) + (1,) * (weight.ndim - 1))


def separable_cnn(*, batch: str = "N", seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """A depthwise-separable classifier: input x (batch, 3, 8, 8), output y (batch, 10)."""
    w = Weights(seed)
    a, b, c, d = (w.gains(n) for n in (8, 8, 16, 16))
    return build(
        f"""(float[{batch},3,8,8] x) => (float[{batch},10] y) {{
            [stem] t1 = Conv<pads=[1,1,1,1]>(x, stem_w, stem_b)
            [stem_relu] t2 = Relu(t1)
            [dw1] t3 = Conv<group=8, pads=[1,1,1,1]>(t2, dw1_w, dw1_b)
            [dw1_clip] t4 = Clip(t3, low, high)
            [pw1] t5 = Conv(t4, pw1_w, pw1_b)
            [pw1_relu] t6 = Relu(t5)
            [dw2] t7 = Conv<group=16, pads=[1,1,1,1], strides=[2,2]>(t6, dw2_w, dw2_b)
            [dw2_clip] t8 = Clip(t7, low, high)
            [pw2] t9 = Conv(t8, pw2_w, pw2_b)
            [pw2_relu] t10 = Relu(t9)
            [pool] t11 = GlobalAveragePool(t10)
            [flat] t12 = Flatten(t11)
            [classes] y = Gemm<transB=1>(t12, classes_w, classes_b)
        }}""",
        stem_w=scaled(w.conv(8, 3, 3, 3), a), stem_b=w.bias(8) * a,
        dw1_w=scaled(w.conv(8, 1, 3, 3), b / a), dw1_b=w.bias(8) * b, low=0.0, high=6.0,
        pw1_w=scaled(w.conv(16, 8, 1, 1, gains=b), c), pw1_b=w.bias(16) * c,
        dw2_w=scaled(w.conv(16, 1, 3, 3), d / c), dw2_b=w.bias(16) * d,
        pw2_w=w.conv(16, 16, 1, 1, gains=d), pw2_b=w.bias(16),
        classes_w=w.conv(10, 16) * 4, classes_b=w.bias(10), opset=opset,
    )  # fmt: skip


def residual_cnn(*, seed: int = 1, folded: bool = True) -> onnx.ModelProto:
    """Two convolutions around a shortcut, and a MatMul with an Add: x (N, 4, 8, 8) to y (N, 6).

    Args:
        folded: False: a BatchNormalization stands behind each convolution.
    """
    w = Weights(seed)
    a = w.gains(8)
    norms = {} if folded else {f"{k}_{i}": v for i in (1, 2, 3) for k, v in _batch_norm(w, 8).items()}
    normal = [f"t{i} = BatchNormalization(c{i}, gain_{i}, shift_{i}, mean_{i}, var_{i})" for i in (1, 2, 3)]
    same = [f"t{i} = Identity(c{i})" for i in (1, 2, 3)]
    n1, n2, n3 = same if folded else normal
    return build(
        f"""(float[N,4,8,8] x) => (float[N,6] y) {{
            [stem] c1 = Conv<pads=[1,1,1,1]>(x, stem_w, stem_b)
            [bn1] {n1}
            [relu1] r1 = Relu(t1)
            [conv2] c2 = Conv<pads=[1,1,1,1]>(r1, conv2_w, conv2_b)
            [bn2] {n2}
            [relu2] r2 = Relu(t2)
            [conv3] c3 = Conv<pads=[1,1,1,1]>(r2, conv3_w, conv3_b)
            [bn3] {n3}
            [add] s = Add(t3, r1)
            [relu3] r3 = Relu(s)
            [pool] p = GlobalAveragePool(r3)
            [flat] f = Flatten(p)
            [product] m = MatMul(f, product_w)
            [plus] y = Add(m, product_b)
        }}""",
        stem_w=w.conv(8, 4, 3, 3), stem_b=w.bias(8),
        conv2_w=scaled(w.conv(8, 8, 3, 3), a), conv2_b=w.bias(8) * a,
        conv3_w=w.conv(8, 8, 3, 3, gains=a if folded else 1.0), conv3_b=w.bias(8),
        product_w=w.conv(6, 8).T * 3, product_b=w.bias(6), **norms,
    )  # fmt: skip


def _batch_norm(w: Weights, channels: int) -> Arrays:
    return {
        "gain": 1 + np.abs(w.bias(channels)), "shift": w.bias(channels),
        "mean": w.bias(channels), "var": w.gains(channels) ** 0.5,
    }  # fmt: skip


def mlp(*, seed: int = 2) -> onnx.ModelProto:
    """Gemm with alpha, beta and transB, Gemm, and MatMul of three axes: x (N, 12) to y (N, 1, 5)."""
    w = Weights(seed)
    a, b = w.gains(24), w.gains(16)
    return build(
        """(float[N,12] x) => (float[N,1,5] y) {
            [first] t1 = Gemm<alpha=0.5, beta=2.0, transB=1>(x, first_w, first_b)
            [relu1] t2 = Relu(t1)
            [second] t3 = Gemm(t2, second_w, second_b)
            [relu2] t4 = Relu(t3)
            [expand] t5 = Unsqueeze(t4, axis)
            [third] y = MatMul(t5, third_w)
        }""",
        first_w=2 * scaled(w.conv(24, 12), a), first_b=w.bias(24) * a / 2,
        second_w=scaled(w.conv(16, 24, gains=a), b).T, second_b=w.bias(16) * b,
        third_w=w.conv(5, 16, gains=b).T, axis=np.array([1]),
    )  # fmt: skip


def conv1d(*, seed: int = 3) -> onnx.ModelProto:
    """Two 1-D convolutions, strided, dilated and automatically padded: x (N, 4, 32) to y (N, 6, 16)."""
    w = Weights(seed)
    a = w.gains(8)
    return build(
        """(float[N,4,32] x) => (float[N,6,16] y) {
            [strided] t1 = Conv<strides=[2], auto_pad="SAME_UPPER">(x, strided_w, strided_b)
            [relu] t2 = Relu(t1)
            [dilated] y = Conv<dilations=[2], pads=[2,2]>(t2, dilated_w)
        }""",
        strided_w=scaled(w.conv(8, 4, 3), a), strided_b=w.bias(8) * a,
        dilated_w=w.conv(6, 8, 3, gains=a),
    )  # fmt: skip


def autoencoder(*, seed: int = 5) -> onnx.ModelProto:
    """Down by Conv, up by ConvTranspose with and without groups: x (N, 3, 8, 8) to y (N, 3, 8, 8)."""
    w = Weights(seed)
    a, b, c, d = (w.gains(n) for n in (8, 12, 8, 8))
    return build(
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) {
            [down1] t1 = Conv<strides=[2,2], pads=[1,1,1,1]>(x, down1_w, down1_b)
            [relu1] t2 = Relu(t1)
            [down2] t3 = Conv<strides=[2,2], auto_pad="SAME_UPPER">(t2, down2_w, down2_b)
            [relu2] t4 = Relu(t3)
            [up1] t5 = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(t4, up1_w, up1_b)
            [relu3] t6 = Relu(t5)
            [up2] t7 = ConvTranspose<strides=[2,2], auto_pad="SAME_LOWER", group=4>(t6, up2_w)
            [relu4] t8 = Relu(t7)
            [out] y = ConvTranspose<dilations=[2,1], output_shape=[8,8]>(t8, out_w)
        }""",
        down1_w=scaled(w.conv(8, 3, 3, 3), a), down1_b=w.bias(8) * a,
        down2_w=scaled(w.conv(12, 8, 3, 3, gains=a), b), down2_b=w.bias(12) * b,
        up1_w=2 * scaled(w.conv(8, 12, 3, 3, gains=b), c).swapaxes(0, 1), up1_b=w.bias(8) * c,
        up2_w=2 * scaled(w.conv(8, 2, 4, 4), 1 / c) * d.reshape(4, 2, 1, 1).repeat(2, axis=0),
        out_w=w.conv(3, 8, 3, 3, gains=d).swapaxes(0, 1),
    )  # fmt: skip


def conv3d(*, seed: int = 6) -> onnx.ModelProto:
    """3-D: Conv, depthwise Conv, ConvTranspose: x (N, 2, 4, 6, 6) to y (N, 3, 4, 6, 6)."""
    w = Weights(seed)
    a, b = w.gains(6), w.gains(6)
    return build(
        """(float[N,2,4,6,6] x) => (float[N,3,4,6,6] y) {
            [down] t1 = Conv<strides=[2,2,2], pads=[1,1,0,0,0,1]>(x, down_w, down_b)
            [relu1] t2 = Relu(t1)
            [depthwise] t3 = Conv<group=6, auto_pad="SAME_UPPER">(t2, depthwise_w, depthwise_b)
            [relu2] t4 = Relu(t3)
            [up] y = ConvTranspose<strides=[2,2,2]>(t4, up_w, up_b)
        }""",
        down_w=scaled(w.conv(6, 2, 3, 3, 2), a), down_b=w.bias(6) * a,
        depthwise_w=scaled(w.conv(6, 1, 2, 3, 3), b / a), depthwise_b=w.bias(6) * b,
        up_w=w.conv(3, 6, 2, 2, 2, gains=b).swapaxes(0, 1), up_b=w.bias(3),
    )  # fmt: skip


def embedding(*, seed: int = 4) -> onnx.ModelProto:
    """Integer tokens (N, 6) and float weights of theirs (N, 6, 1) to y (N, 6, 4)."""
    w = Weights(seed)
    a = w.gains(12)
    return build(
        """(int64[N,6] tokens, float[N,6,1] importance) => (float[N,6,4] y) {
            [look_up] t1 = Gather(table, tokens)
            [weigh] t2 = Mul(t1, importance)
            [hidden] t3 = MatMul(t2, hidden_w)
            [relu] t4 = Relu(t3)
            [project] y = MatMul(t4, project_w)
        }""",
        table=w.conv(20, 8) * 3,
        hidden_w=scaled(w.conv(12, 8), a).T,
        project_w=w.conv(4, 12, gains=a).T,
    )  # fmt: skip


def transformer_block(*, seed: int = 5) -> onnx.ModelProto:
    """LayerNormalization before attention, before two products and before the last: x (N, 6, 16) to y (N, 6, 10)."""
    w = Weights(seed)
    a, b, c = (w.gains(16) for _ in range(3))
    return build(
        """(float[N,6,16] x) => (float[N,6,10] y) {
            [norm1] n1 = LayerNormalization(x, norm1_w, norm1_b)
            [query] q = MatMul(n1, query_w)
            [key] k = MatMul(n1, key_w)
            [value] v = MatMul(n1, value_w)
            kt = Transpose<perm=[0,2,1]>(k)
            alike = MatMul(q, kt)
            attention = Softmax(alike)
            mixed = MatMul(attention, v)
            [project] p = MatMul(mixed, project_w)
            r1 = Add(x, p)
            [norm2] n2 = LayerNormalization(r1, norm2_w, norm2_b)
            [up] u = MatMul(n2, up_w)
            r = Relu(u)
            [down] d = MatMul(r, down_w)
            r2 = Add(r1, d)
            [norm3] n3 = LayerNormalization<epsilon=0.001>(r2, norm3_w, norm3_b)
            [head] y = MatMul(n3, head_w)
        }""",
        norm1_w=a, norm1_b=w.bias(16) * a, norm2_w=b, norm2_b=w.bias(16) * b, norm3_w=c, norm3_b=w.bias(16) * c,
        query_w=w.conv(16, 16, gains=a).T / 2, key_w=w.conv(16, 16, gains=a).T / 2,
        value_w=w.conv(16, 16, gains=a).T, project_w=w.conv(16, 16).T,
        up_w=w.conv(32, 16, gains=b).T, down_w=w.conv(16, 32).T, head_w=w.conv(10, 16, gains=c).T,
    )  # fmt: skip


def style_cnn(*, seed: int = 6) -> onnx.ModelProto:
    """InstanceNormalization and Relu behind each of two convolutions: x (N, 3, 8, 8) to y (N, 3, 8, 8)."""
    w = Weights(seed)
    a, b = w.gains(8), w.gains(8)
    return build(
        """(float[N,3,8,8] x) => (float[N,3,8,8] y) {
            [conv1] c1 = Conv<pads=[1,1,1,1]>(x, conv1_w)
            [norm1] n1 = InstanceNormalization(c1, norm1_w, norm1_b)
            [relu1] r1 = Relu(n1)
            [conv2] c2 = Conv<pads=[1,1,1,1]>(r1, conv2_w)
            [norm2] n2 = InstanceNormalization<epsilon=0.001>(c2, norm2_w, norm2_b)
            [relu2] r2 = Relu(n2)
            [conv3] y = Conv<pads=[1,1,1,1]>(r2, conv3_w, conv3_b)
        }""",
        conv1_w=w.conv(8, 3, 3, 3), norm1_w=a, norm1_b=w.bias(8) * a,
        conv2_w=w.conv(8, 8, 3, 3, gains=a), norm2_w=b, norm2_b=w.bias(8) * b,
        conv3_w=w.conv(3, 8, 3, 3, gains=b), conv3_b=w.bias(3),
    )  # fmt: skip


MODELS = {
    "separable": separable_cnn,
    "residual": residual_cnn,
    "mlp": mlp,
    "conv1d": conv1d,
    "autoencoder": autoencoder,
    "conv3d": conv3d,
    "embedding": embedding,
}


def fitted(arrays: Arrays) -> Arrays:
    """Ranges, scales and integers come from these; of 40 samples or more `apart` has the others."""
    return {name: array[~_is_apart(array)] for name, array in arrays.items()}


def apart(arrays: Arrays) -> Arrays:
    """The samples that whole models are compared on: every eighth, 64 at most; nothing of fewer than 40."""
    return {name: array[_is_apart(array)] for name, array in arrays.items()}


def _is_apart(array: np.ndarray) -> np.ndarray:
    index = np.arange(len(array))
    return (index % 8 == 7) & (index < 512) & (len(array) >= 40)


def by_set(of_samples: np.ndarray, solver: str) -> tuple[float, float]:
    """Means over the fitted and the held-out samples: every fifth is held out, with the gradient solver none."""
    held_out = (np.arange(len(of_samples)) % 5 == 4) & (solver != "gradient")
    return of_samples[~held_out].mean(), of_samples[held_out].mean() if held_out.any() else np.nan


def judged(layer: LayerReport) -> tuple[float, float]:
    """Errors before and after on the rows that decide whether outputs change: held-out ones, if there are any."""
    index = 1 if layer.rows[1] else 0
    return layer.before[index], layer.after[index]


def samples(model: onnx.ModelProto, count: int, *, seed: int = 0) -> Arrays:
    """Random inputs for a model, neighbours along the last axis alike as in images and signals."""
    random, arrays = np.random.default_rng(seed), {}
    for value in model.graph.input:
        shape = (count, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:]))
        if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
            arrays[value.name] = random.integers(0, 20, shape)
            continue
        x = random.standard_normal(shape)
        for axis in range(2, x.ndim):
            x = x + np.roll(x, 1, axis) + np.roll(x, 2, axis)
        arrays[value.name] = (x / x.std()).astype(np.float32)
    return arrays


def run(model: onnx.ModelProto | str, arrays: Arrays, *, optimise: bool = False) -> list[np.ndarray]:
    """All outputs; as the model defines them, or with onnxruntime's default graph optimisation."""
    return opened(model if isinstance(model, str) else model.SerializeToString(), optimise=optimise).run(None, arrays)


def opened(source: str | bytes, *, optimise: bool, fuse_qdq: bool = True) -> onnxruntime.InferenceSession:
    """A session whose sums of 8-bit products are exact on all processors.

    onnxruntime 1.32 cannot load a model whose nodes share a weight so, where the processor is without VNNI: there Q and
    DQ are computed one by one.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1" if fuse_qdq else "0")
    options.add_session_config_entry("session.disable_quant_qdq", "0" if fuse_qdq else "1")
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if fuse_qdq and "Attempt to replace the existing tensor" in str(error):
            return opened(source, optimise=optimise, fuse_qdq=False)
        raise


def mean_squared_error(float_model: onnx.ModelProto, model: onnx.ModelProto, arrays: Arrays) -> float:
    """Return the error of the first output, over the variance of the float model's."""
    want, have = (run(m, arrays)[0].astype(np.float64) for m in (float_model, model))
    return float(np.mean((have - want) ** 2) / np.var(want))


def initializers(model: onnx.ModelProto) -> Arrays:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
