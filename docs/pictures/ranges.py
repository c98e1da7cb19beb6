"""The picture ranges.svg: what each way of choosing a range makes of one activation with a few far values.

The activation is drawn with a seed: 2000 samples of 64 values of Student's t distribution with 4 degrees of freedom.
The ranges are those that a quantized model of one MatMul has.
"""

from __future__ import annotations

import numpy as np
from drawing import WIDTH, Drawing, Scale
from onnx import TensorProto, helper, numpy_helper

from quark.onnx import CalibMethod, Int8Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec
from quark.onnx.report.activation_report import ActivationReport

METHODS = (
    CalibMethod.MinMax,
    CalibMethod.Percentile,
    CalibMethod.MinMSE,
    CalibMethod.Entropy,
    CalibMethod.LayerwisePercentile,
    CalibMethod.Distribution,
)
STEP = 36  # between methods


def picture() -> str:
    """The picture as SVG."""
    values = np.random.default_rng(0).standard_t(4, (2000, 64)).astype(np.float32)
    reach = float(np.abs(values).max())
    bottom = 196 + STEP * len(METHODS)
    drawing = Drawing("Ranges of one activation", bottom + 24)
    drawing.text(14, 24, "Values of an activation, on a logarithmic scale", "bold")
    x = Scale(-reach, reach, 24, WIDTH - 24)
    counts = np.log10(1 + np.histogram(values, 96, (-reach, reach))[0])
    drawing.histogram(counts.tolist(), x, Scale(0, counts.max(), 150, 40), "faint")
    drawing.text(14, 178, "The range that each method chooses, and the SQNR of the values in it", "small")
    for index, method in enumerate(METHODS):
        y = 206 + STEP * index
        chosen = _range(values, method)
        drawing.text(24, y - 3, method.name, "small bold")
        drawing.text(WIDTH - 24, y - 3, f"{_sqnr(values, chosen):.1f} dB", "small", "end")
        drawing.line(24, y + 7, WIDTH - 24, y + 7, "rule")
        drawing.box(x(chosen.range_low), y + 3, x(chosen.range_high) - x(chosen.range_low), 8, "two-filled")
    for value in (-20, 0, 20):
        drawing.text(x(value), bottom + 10, str(value), "small", "middle")
    return drawing.svg()


def _range(values: np.ndarray, method: CalibMethod) -> ActivationReport:
    """The range of the MatMul's input, 8 bits."""
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "one_layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["samples", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["samples", 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    config = QConfig(QLayerConfig(activation=UInt8Spec(calibration_method=method), weight=Int8Spec()))
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(model, None, values)
    assert quantizer.report is not None
    return next(one for one in quantizer.report.activations if one.name == "x")


def _sqnr(values: np.ndarray, chosen: ActivationReport) -> float:
    """Power of the values over that of what the 256 levels of the range lose, in dB."""
    step = (chosen.range_high - chosen.range_low) / 255
    levels = np.clip(np.round((values - chosen.range_low) / step), 0, 255)
    lost = chosen.range_low + step * levels - values
    return 10 * float(np.log10(np.mean(values.astype(np.float64) ** 2) / np.mean(lost.astype(np.float64) ** 2)))
