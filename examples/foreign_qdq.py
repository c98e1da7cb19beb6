"""Finetune what another tool quantized: python examples/foreign_qdq.py

onnxruntime's quantize_static makes the Q/DQ model; finetune() changes its integer weights and biases, and nothing else.
"""

from __future__ import annotations

import numpy as np
from digits_data import FLOAT_MODEL, accuracy, load_digits
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from quark.onnx import AdaRoundConfig, finetune


class Digits(CalibrationDataReader):
    """Calibration images, one at a time."""

    def __init__(self) -> None:
        images, _ = load_digits("calibration")
        self._items = iter([{"image": image[np.newaxis]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def main() -> None:
    quantize_static(
        FLOAT_MODEL, "digits_static.onnx", Digits(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8
    )
    report = finetune(FLOAT_MODEL, "digits_static.onnx", "digits_tuned.onnx", Digits(), AdaRoundConfig())
    print(report)
    for model in (FLOAT_MODEL, "digits_static.onnx", "digits_tuned.onnx"):
        print(f"{model!s:60s} accuracy {accuracy(model):.2f} %")


if __name__ == "__main__":
    main()
