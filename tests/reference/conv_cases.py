"""Random Conv and ConvTranspose for property tests: every attribute, one to three axes, sums exact in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference.conv_rows import AUTO_PADS, Conv, ConvTranspose
from reference.evaluator import CONV_IS_RIGHT


@dataclass(frozen=True)
class ConvCase:
    """A layer with data: x (samples, channels, *sizes), weight as the operator has it, bias (groups * outputs).

    The numbers are small integers, so that sums of their products are exact in any order.
    """

    conv: Conv
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def model(self) -> onnx.ModelProto:
        """The layer as a model with input x and output y."""
        node = helper.make_node(self.conv.op_type, ["x", "w", "b"], ["y"], **self.conv.onnx)
        graph = helper.make_graph(
            [node],
            "conv",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *self.x.shape[1:]])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * self.x.ndim)],
            [numpy_helper.from_array(self.weight, "w"), numpy_helper.from_array(self.bias, "b")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    @property
    def has_onnx_reference(self) -> bool:
        """Whether onnx's reference evaluator computes such a layer, which it does not do for all of ConvTranspose."""
        c = self.conv
        if not isinstance(c, ConvTranspose):
            return CONV_IS_RIGHT
        sizes = enumerate(self.x.shape[2:])
        too_few = c.auto_pad.startswith("SAME") and any(c.whole(a, size) < size * c.strides[a] for a, size in sizes)
        return c.groups == 1 and c.output_shape is None and not too_few


@st.composite
def conv_cases(draw: st.DrawFn, *, depthwise: bool = False) -> ConvCase:
    axes = draw(st.integers(1, 3))
    most = 2 if axes == 3 else 3

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    auto_pad = draw(st.sampled_from(AUTO_PADS))
    # onnxruntime refuses dilation with SAME padding.
    kernel, strides, dilations = each(1, most), each(1, 3), each(1, 1 if auto_pad.startswith("SAME") else 2)
    pads = each(0, 2) + each(0, 2) if auto_pad == "NOTSET" else (0, 0) * axes
    groups = draw(st.integers(2, 5)) if depthwise else draw(st.integers(1, 3))
    channels, outputs = (1, 1) if depthwise else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    conv = Conv(kernel=kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, groups=groups)
    sizes = []
    for axis in range(axes):
        padding = conv.window(axis) if auto_pad.startswith("SAME") else pads[axis] + pads[axis + axes]
        least = max(1, conv.window(axis) - padding)
        sizes.append(draw(st.integers(least, least + 2 * most)))
    return _with_numbers(draw, conv, (groups * channels, *sizes), (groups * outputs, channels, *kernel), outputs)


@st.composite
def conv_transpose_cases(draw: st.DrawFn, *, depthwise: bool = False) -> ConvCase:
    axes = draw(st.integers(1, 3))
    most = 2 if axes == 3 else 4

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    auto_pad = draw(st.sampled_from(AUTO_PADS))
    kernel, strides, dilations, sizes = each(1, most), each(1, 3), each(1, 3), each(1, most)
    pads, output_padding, wholes = (0, 0) * axes, [], []
    for axis in range(axes):
        output_padding.append(draw(st.integers(0, strides[axis] - 1)))  # onnxruntime refuses more
        wholes.append(
            strides[axis] * (sizes[axis] - 1) + output_padding[axis] + dilations[axis] * (kernel[axis] - 1) + 1
        )
    output_shape = tuple(draw(st.integers(1, whole)) for whole in wholes)  # nor a larger one
    if auto_pad == "NOTSET":  # at least one output is left
        starts = [draw(st.integers(0, n - 1)) for n in wholes]
        pads = (*starts, *(draw(st.integers(0, n - 1 - start)) for n, start in zip(wholes, starts, strict=True)))
    groups = draw(st.integers(2, 5)) if depthwise else draw(st.integers(1, 3))
    channels, outputs = (1, 1) if depthwise else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    conv = ConvTranspose(
        kernel=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        auto_pad=auto_pad,
        groups=groups,
        output_padding=tuple(output_padding),
        output_shape=output_shape if draw(st.booleans()) else None,
    )
    return _with_numbers(draw, conv, (groups * channels, *sizes), (groups * channels, outputs, *kernel), outputs)


def _with_numbers(
    draw: st.DrawFn, conv: Conv, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], outputs: int
) -> ConvCase:
    """x_shape: of one sample; outputs: per group."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-4, 5, shape).astype(np.float32)

    samples = draw(st.integers(1, 4))
    return ConvCase(conv, numbers(samples, *x_shape), numbers(*weight_shape), numbers(conv.groups * outputs))
