"""Random convolutions for property tests: every attribute, one or two axes, sums exact in float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from reference.conv_rows import AUTO_PADS, Conv


@dataclass(frozen=True)
class ConvCase:
    """A Conv with data: x (samples, channels, *sizes), weight (outputs, channels / groups, *kernel), bias.

    The numbers are small integers, so that sums of their products are exact in any order.
    """

    conv: Conv
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @property
    def core_geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        c = self.conv
        return c.kernel, c.strides, c.dilations, c.pads, AUTO_PADS.index(c.auto_pad)

    @property
    def model(self) -> onnx.ModelProto:
        """The convolution as a model with input x and output y."""
        c, rank = self.conv, self.x.ndim
        pads = {"pads": c.pads} if c.auto_pad == "NOTSET" else {"auto_pad": c.auto_pad}
        node = helper.make_node(
            "Conv", ["x", "w", "b"], ["y"], strides=c.strides, dilations=c.dilations, group=c.groups, **pads
        )
        graph = helper.make_graph(
            [node],
            "conv",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.x.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
            [numpy_helper.from_array(self.weight, "w"), numpy_helper.from_array(self.bias, "b")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@st.composite
def conv_cases(draw: st.DrawFn, *, depthwise: bool = False) -> ConvCase:
    axes = draw(st.integers(1, 2))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    auto_pad = draw(st.sampled_from(AUTO_PADS))
    # onnxruntime refuses dilation with SAME padding.
    kernel, strides, dilations = each(1, 3), each(1, 3), each(1, 1 if auto_pad.startswith("SAME") else 2)
    pads = each(0, 2) + each(0, 2) if auto_pad == "NOTSET" else (0, 0) * axes
    groups = draw(st.integers(2, 5)) if depthwise else draw(st.integers(1, 3))
    channels, outputs = (1, 1) if depthwise else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    sizes = []
    for axis in range(axes):
        window = dilations[axis] * (kernel[axis] - 1) + 1
        padding = window if auto_pad.startswith("SAME") else pads[axis] + pads[axis + axes]
        least = max(1, window - padding)
        sizes.append(draw(st.integers(least, least + 6)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def numbers(*shape: int) -> np.ndarray:
        return rng.integers(-4, 5, shape).astype(np.float32)

    return ConvCase(
        Conv(kernel=kernel, strides=strides, dilations=dilations, pads=pads, auto_pad=auto_pad, groups=groups),
        numbers(draw(st.integers(1, 4)), groups * channels, *sizes),
        numbers(groups * outputs, channels, *kernel),
        numbers(groups * outputs),
    )
