"""The network and the images of examples/, with weights of 4 bits, where rounding is easy to see."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from quark.onnx import (
    AdaRoundConfig,
    CalibMethod,
    Int4Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    QuantGranularity,
    Report,
    UInt8Spec,
)

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from digits_data import Role, load_digits

FIRST = "/0/Conv"  # the first layer: 16 filters of 3 x 3 = 9 weights, which see the image itself


@cache
def float_model() -> onnx.ModelProto:
    """The network that examples/train_digits.py trained."""
    return onnx.load(Path(__file__).parents[2] / "examples" / "digits.onnx")


@cache
def quantized(*algorithms: AdaRoundConfig) -> tuple[onnx.ModelProto, Report]:
    """The network with 8-bit activations, and 4-bit weights of one scale a channel, from minimum and maximum."""
    weight = Int4Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
    quantizer = ModelQuantizer(QConfig(QLayerConfig(activation=UInt8Spec(), weight=weight), algo_config=algorithms))
    model = quantizer.quantize_model(float_model(), None, load_digits("calibration")[0])
    assert model is not None
    assert quantizer.report is not None
    return model, quantizer.report


def weights(model: onnx.ModelProto) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Integers (16, 9) and scales (16,) of the first layer of a quantized model; its zero points are 0."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    layer = next(node for node in model.graph.node if node.name == FIRST)
    dequantize = next(node for node in model.graph.node if layer.input[1] in node.output)
    integers, scales = (numpy_helper.to_array(constants[name]) for name in dequantize.input[:2])
    return integers.astype(np.int64).reshape(16, 9), scales.astype(np.float64)


def float_weights() -> NDArray[np.float64]:
    """The first layer's weights, (16, 9)."""
    constants = {tensor.name: tensor for tensor in float_model().graph.initializer}
    layer = next(node for node in float_model().graph.node if node.name == FIRST)
    return numpy_helper.to_array(constants[layer.input[1]]).astype(np.float64).reshape(16, 9)


def outputs(model: onnx.ModelProto, role: Role) -> NDArray[np.float32]:
    """What the first layer gives before its activation: (images, 16, height, width)."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    layer = next(node for node in exposed.graph.node if node.name == FIRST)
    exposed.graph.output.append(onnx.ValueInfoProto(name=layer.output[0]))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options)
    found: NDArray[np.float32] = session.run([layer.output[0]], {"image": load_digits(role)[0]})[0]
    return found


def patches(role: Role) -> NDArray[np.float64]:
    """What the first layer's filters see of the images: (positions, 9)."""
    layer = next(node for node in float_model().graph.node if node.name == FIRST)
    attributes = {one.name: list(one.ints) for one in layer.attribute}
    images = load_digits(role)[0][:, 0]
    top, left, bottom, right = attributes["pads"]
    padded = np.pad(images, ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    step = attributes["strides"]
    return windows[:, :: step[0], :: step[1]].reshape(-1, 9).astype(np.float64)
