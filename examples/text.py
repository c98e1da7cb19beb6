"""Quantize a transformer for text: python examples/text.py [MODEL.onnx SAMPLES.npz]

SAMPLES.npz holds one array for each input, as input_ids and attention_mask, whose first axis counts samples; the last
64 are for comparing. Without arguments a small BERT-like network with random weights and sentences shows the steps.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from networks import TOKENS, WORDS, transformer

from quark.onnx import compare_models, quantize


def sentences(count: int, seed: int) -> dict[str, np.ndarray]:
    """Tokens of sentences of different lengths, padded with 0, and the mask that hides the padding."""
    random = np.random.default_rng(seed)
    mask = np.arange(TOKENS) < random.integers(4, TOKENS + 1, (count, 1))
    tokens = random.integers(1, WORDS, (count, TOKENS)) * mask
    return {"input_ids": tokens, "attention_mask": mask.astype(np.int64)}


def main() -> None:
    if len(sys.argv) == 3:
        model, data = onnx.load(sys.argv[1]), dict(np.load(sys.argv[2]))
        unseen = {name: array[-64:] for name, array in data.items()}
        data = {name: array[:-64] for name, array in data.items()}
    else:
        model, data, unseen = transformer(), sentences(128, seed=0), sentences(64, seed=1)
    quantized, report = quantize(model, None, data)
    onnx.save(quantized, "text_int8.onnx")
    print(report)
    print("On sentences that nothing has seen:", compare_models(model, quantized, unseen))


if __name__ == "__main__":
    main()
