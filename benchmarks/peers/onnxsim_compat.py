"""onnxsim 0.8.1's quark_compat (NumPy, without PyTorch) on one case, in an environment of its own:

python3 -m venv VENV && VENV/bin/pip install onnxsim==0.8.1 onnx onnxruntime pillow mlxtend
PYTHONPATH=benchmarks VENV/bin/python -m peers.onnxsim_compat --case digits --output onnxsim.onnx
"""

from __future__ import annotations

from onnxsim.quark_compat import (
    AdaQuantConfig,
    AdaRoundConfig,
    Int8Spec,
    ModelQuantizer,
    QConfig,
    QLayerConfig,
    UInt8Spec,
)
from peers.job import Reader, arguments, keywords, run


def main() -> None:
    a = arguments(__doc__).parse_args()
    kind = AdaQuantConfig if a.algorithm == "adaquant" else AdaRoundConfig
    algorithms = [] if a.algorithm == "none" else [kind(**keywords(a))]
    layer = QLayerConfig(input_tensors=UInt8Spec(), weight=Int8Spec())
    quantizer = ModelQuantizer(QConfig(global_config=layer, algo_config=algorithms))

    def quantize(model: str, output: str, reader: Reader) -> None:
        quantizer.quantize_model(model, output, reader)

    run("onnxsim 0.8.1", a, quantize)


if __name__ == "__main__":
    main()
