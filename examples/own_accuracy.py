"""Your own score decides which layers are kept: python examples/own_accuracy.py

With selective_update a layer's change stays only if the whole model gets better by it: by its distance to the float
model, or, with an evaluator, by a score of yours. A layer is judged before those behind it are tuned, so that AdaRound
alone may well end higher: compare the lines. The score is computed on some images, accuracy on others.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
from digits_data import FLOAT_MODEL, accuracy, load_digits

from quark.onnx import AdaRoundConfig, Int4Spec, ModelQuantizer, QConfig, QLayerConfig, UInt8Spec

IMAGES, LABELS = (array[:500] for array in load_digits("training"))


def log_likelihood(session: onnxruntime.InferenceSession) -> float:
    """The mean log-likelihood of the right classes: higher is better, and it moves in small steps."""
    (logits,) = session.run(None, {"image": IMAGES})
    logits = logits - logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(LABELS)), LABELS] - np.log(np.exp(logits).sum(axis=1))
    return float(right.mean())


def main() -> None:
    images, _ = load_digits("calibration")
    layer = QLayerConfig(activation=UInt8Spec(), weight=Int4Spec())
    for name, algorithms in {
        "plain": [],
        "AdaRound": [AdaRoundConfig()],
        "AdaRound, chosen by log-likelihood": [AdaRoundConfig(selective_update=True, evaluator=log_likelihood)],
    }.items():
        quantizer = ModelQuantizer(QConfig(layer, algo_config=algorithms))
        quantizer.quantize_model(str(FLOAT_MODEL), "digits_chosen.onnx", images)
        changed = sum(one.accepted for one in quantizer.report.layers)
        score = log_likelihood(onnxruntime.InferenceSession("digits_chosen.onnx"))
        top1 = accuracy("digits_chosen.onnx")
        print(f"{name:36s} {changed:2d} layers changed, score {score:8.4f}, accuracy {top1:.2f} %")


if __name__ == "__main__":
    main()
